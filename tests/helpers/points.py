"""Made-up points of a trade-off, for what reads runs."""

import numpy as np

from karipap_core.plan.document import Plan
from karipap_core.statistics.bootstrap import figures
from karipap_core.workspace.runs import RUN_FORMAT

MODEL = {"name": "tiny", "fingerprint": "ab" * 32, "parameters": 5000, "block_parameters": 3000, "bytes": 10000}


LEAST = {
    "kind": "network",
    "method": "lowrank",
    "label": "made up",
    "model": MODEL,
    "bytes_kept": 0.5,
}  # beside `kept`, of a run


Q, K, UP = (f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"))


def entry(out: int, in_: int, chi: int, quantize=None) -> dict:
    return {"network": "lowrank", "out": [out], "in": [in_], "chi": [chi], "quantize": quantize}


def plan(**weights) -> Plan:
    names = {"q": Q, "k": K, "up": UP}
    return Plan(MODEL, "weight", {names[key]: value for key, value in weights.items()}, predicted={"rise": 0.1})


ONE = plan(q=entry(24, 24, 4), k=entry(12, 24, 3), up={"network": "dense"})


TWO = plan(q=entry(24, 24, 6), k=entry(12, 24, 3), up=entry(40, 24, 5, "int8"))


def run(name: str, made: Plan, rises: np.ndarray, **more) -> dict:
    documents = np.repeat(np.arange(20), 5)
    return {
        "format": RUN_FORMAT,
        "version": 1,
        "id": name,
        "label": name,
        "kind": "network",
        "method": "lowrank",
        "plan": made.to_json(),
        "model": MODEL,
        "kept": 0.5,
        "bytes_kept": 0.5,
        "loss": 2 + float(rises.mean()),
        "rise": float(rises.mean()),
        "perplexity": float(np.exp(2 + rises.mean())),
        "kl": 0.1,
        "tokens": 100,
        "dense": {"loss": 2.0, "perplexity": float(np.exp(2))},
        "text": {"name": "t", "sha256": "s"},
        "window": 8,
        "stride": 4,
        **figures(rises, documents, 4),
    } | more


def point(name, kind, method, bytes_kept, rise, rule="calibrated", **more) -> dict:
    settings = {"rule": rule} if kind == "network" else {}
    sizes = dict.fromkeys(("kept", "kept_blocks", "bytes_kept_blocks"), bytes_kept)
    return {
        "id": name,
        "kind": kind,
        "method": method,
        "label": name,
        "settings": settings,
        "bytes_kept": bytes_kept,
        "rise": rise,
        "rise_error": 0.001,
        "loss": 2 + rise,
        "kl": max(rise, 0) * 0.9,
        "dense": {"loss": 2.0},
        "perplexity": float(np.exp(2 + rise)),
        "top1_agreement": 1 - rise / 9,
        **sizes,
    } | more
