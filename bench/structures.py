"""What structure around a network buys at equal bytes, on trained weights under the loss metric.

    python -m bench.structures [--kept .15 .3 .6] [--models assets/demo_model …]

Each way is given the largest χ that its bytes (two a number, orders of rows and columns as int32) leave it at `kept` of
the weight's own, is fitted, and its metric error is divided by that of `lowrank` at the same bytes. The table has the
geometric mean over the weights; a `-` is a way that does not fit into that few bytes on every weight. Moments are of
the calibration text, kept in the workspace.
"""

import argparse
import math
import time
from pathlib import Path

import torch

from karipap_core.networks import NETWORKS
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.structured import Structure, Structured, head_factors
from karipap_core.plan.study import Study
from karipap_core.search import largest

ROOT = Path(__file__).resolve().parents[1]
MODELS = (ROOT / "assets" / "demo_model",)
WEIGHTS = (
    "1.self_attn.q_proj",
    "3.self_attn.v_proj",
    "4.self_attn.o_proj",
    "2.self_attn.k_proj",
    "0.self_attn.v_proj",
    "4.mlp.down_proj",
)
BYTES = 2  # of a number


def ways(shape: tuple[int, int], role: str, heads: int, budget: float) -> dict:
    """Each way's spec at χ = 1, by name."""
    n_out, n_in = shape
    rank = max(1, round(budget / BYTES / 2 / (n_out + n_in)))  # half of the bytes

    def around(network: str, **structure):
        return Structured.for_shape(n_out, n_in, 1, inner=network, structure=Structure(**structure))

    found = {name: NETWORKS[name].for_shape(n_out, n_in, 1) for name in ("mpo", "peps", "disentangled")}
    found["mpo + order of columns"] = around("mpo", columns=True)
    found["mpo + SVD head"] = around("mpo", head=rank)
    found["peps + SVD head"] = around("peps", head=rank)
    found["disentangled + SVD head"] = around("disentangled", head=rank)
    if role in "qkvo":
        out, in_ = head_factors(n_out, n_in, heads, "in" if role == "o" else "out")
        found["mpo + heads"] = Structured.for_shape(n_out, n_in, 1, out, in_, structure=Structure(heads=heads))
    return found


def within(spec, budget: float):
    """The spec at the largest χ within `budget` bytes, None where χ = 1 is over it."""
    chi = largest(lambda chi: spec.with_chi(chi).bytes(BYTES) <= budget, 0, spec.max_chi + 1)
    return spec.with_chi(chi) if chi else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kept", type=float, nargs="+", default=[0.15, 0.3, 0.6])
    parser.add_argument("--models", type=Path, nargs="+", default=MODELS)
    args = parser.parse_args()
    for model in args.models:
        study = Study(model)
        config = study.checkpoint.config
        logs: dict[str, dict[float, list[float]]] = {}
        began = time.process_time()
        for name in (f"model.layers.{end}" for end in WEIGHTS):
            weight, metric = study.checkpoint.weight(name), study.moments.metric(name, "loss")
            W = study.checkpoint.read(name).double()
            curve = LowRank.curve(W, metric)
            heads = config["num_key_value_heads" if weight.role in "kv" else "num_attention_heads"]
            for kept in args.kept:
                budget = kept * BYTES * W.numel()
                bar = curve.at(budget / BYTES / sum(W.shape))
                for way, start in ways(W.shape, weight.role, heads, budget).items():
                    if spec := within(start, budget):
                        error = metric.absolute(W - spec.dense(spec.fit(W, metric)))
                        logs.setdefault(way, {}).setdefault(kept, []).append(math.log(error / bar))
        print(f"{model.name}, {len(WEIGHTS)} weights, loss metric: error over lowrank's at equal bytes")
        print("| way | " + " | ".join(f"kept {kept}" for kept in args.kept) + " | weights |")
        print("|---" * (len(args.kept) + 2) + "|")
        for way, by_kept in logs.items():
            most = max(map(len, by_kept.values()))
            cells = [
                f"{math.exp(sum(found) / len(found)):.2f}" if len(found := by_kept.get(kept, [])) == most else "-"
                for kept in args.kept
            ]
            print(f"| {way} | " + " | ".join(cells) + f" | {most} |")
        print(f"({time.process_time() - began:.0f} s of computing)", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
