"""A made-up profile, from random matrices through the real arithmetic: no model, no torch, milliseconds."""

import numpy as np

from karipap_core.profiles.document import Profile
from karipap_core.spectra.describe import describe

SHAPES = {
    "q": (24, 24),
    "k": (12, 24),
    "v": (12, 24),
    "o": (24, 24),
    "gate": (40, 24),
    "up": (40, 24),
    "down": (24, 40),
}


def profile(
    layers: int = 3, experts: int = 0, metrics=("weight",), bonds: bool = False, fingerprint: str = "0" * 64
) -> Profile:
    """Llama-shaped; `k` has three strong directions, `o` is pure noise, the rest lies between. Skips two tensors."""
    rng = np.random.default_rng(0)
    rows, spectra = [], {}

    def add(name, layer, role, shape, expert=None, compressible=True):
        row = {
            "name": name,
            "layer": layer,
            "role": role,
            "expert": expert,
            "shape": list(shape),
            "dtype": "float32",
            "parameters": shape[0] * shape[1],
            "compressible": compressible,
            "notes": [],
            "spectra": {},
            "bonds": [],
        }
        matrix = rng.standard_normal(shape)
        strength = {"k": 30.0, "o": 0.0}.get(role, 4.0)
        if role != "o":
            left, right = np.linalg.qr(rng.standard_normal(shape))[0][:, :3], rng.standard_normal((3, shape[1]))
            matrix += strength * left @ right
        for number, metric in enumerate(metrics):
            seen = matrix * np.geomspace(1, 1 + 3 * number, shape[1])
            sigma = np.linalg.svd(seen, compute_uv=False)
            spectra[f"{name}|{metric}"] = sigma
            row["spectra"][metric] = describe(sigma, shape)
        if bonds and compressible:
            dims = [shape[0] // 2, shape[1] * 2]
            cut = {"bond": 1, "left_dims": [[2, 2]], "right_dims": [[2, 2]], "dims": dims, "max_chi": min(dims)}
            sigma = np.linalg.svd(matrix.reshape(dims), compute_uv=False)
            spectra[f"{name}|{metrics[0]}|bond1"] = sigma
            row["bonds"].append(cut | {"spectra": {metrics[0]: describe(sigma, dims)}})
        rows.append(row)

    add("model.embed_tokens", None, "embed", (64, 24), compressible=False)
    for layer in range(layers):
        for role, shape in SHAPES.items():
            if experts and role in ("gate", "up", "down"):
                for expert in range(experts):
                    add(f"model.layers.{layer}.experts.{expert}.{role}_proj", layer, role, shape, expert)
            else:
                add(f"model.layers.{layer}.{role}_proj", layer, role, shape)
    document = {
        "format": "karipap-profile",
        "version": 1,
        "model": "made up",
        "fingerprint": fingerprint,
        "parameters": 1,
        "settings": {"metrics": list(metrics), "network": "mpo" if bonds else None, "text": None, "sha256": None},
        "device": "cpu",
        "versions": {"numpy": np.__version__},
        "seconds": 0.1,
        "weights": rows,
        "skipped": [{"name": "model.norm.weight", "why": "one-dimensional"}, {"name": "x.bias", "why": "a bias"}],
    }
    return Profile(document, spectra)


def task(acc: float, n: int = 200, seed: int = 0, **more) -> dict:
    """A task's result as the harness and `tasks.Suite` give it, round(acc·n) of n items right."""
    right = np.zeros(n, int)
    right[: round(acc * n)] = 1
    correct = np.random.default_rng(seed).permutation(right).tolist()
    share = float(np.mean(correct))
    error = float(np.sqrt(share * (1 - share) / (n - 1)))
    return {
        "acc": share,
        "acc_stderr": error,
        "acc_norm": share + 0.01,
        "acc_norm_stderr": error,
        "chance": 0.25,
        "items": n,
        "correct": correct,
        "metric": "acc",
        "higher_is_better": True,
        "shots": 0,
        "limit": None,
        "version": 1,
        "task_hash": "h",
    } | more
