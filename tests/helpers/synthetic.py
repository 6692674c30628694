"""Option tables of models that nobody has to download: shapes of real ones, damages from made-up spectra."""

import numpy as np


def chi_grid(limit: int, points: int = 512) -> np.ndarray:
    """Bond dimensions 1 … limit: every one where there are few, else log-spaced integers, at most `points`."""
    if limit <= points:
        return np.arange(1, limit + 1)
    tries = (np.unique(np.round(np.geomspace(1, limit, n)).astype(int)) for n in range(4 * points, points, -8))
    return next(grid for grid in tries if len(grid) <= points)


def weight_row(name, layer, role, shape, rng, expert=None, points=512, scale=1.0, bytes_per_parameter=2) -> dict:
    """One weight: a spectrum of a few strong directions over a power-law tail, damage = scale·tail(χ)."""
    n_out, n_in = shape
    full = min(n_out, n_in)
    k = np.arange(1, full + 1)
    decay = rng.uniform(0.35, 0.9)
    energy = k ** (-2 * decay) + rng.uniform(1, 9) * np.exp(-k / rng.uniform(4, 40))
    tail = np.concatenate([np.cumsum(energy[::-1])[::-1][1:], [0.0]]) / energy.sum()
    chi = chi_grid(full, points)
    return {
        "name": name,
        "layer": layer,
        "role": role,
        "expert": expert,
        "shape": shape,
        "parameters_dense": n_out * n_in,
        "bytes_per_parameter": bytes_per_parameter,
        "chi": chi,
        "parameters": chi * (n_out + n_in),
        "multiply_adds": chi * (n_out + n_in),
        "damage": (scale * tail[chi - 1]).astype(np.float32),
    }


def llama_rows(layers=32, hidden=4096, kv=None, mlp=11008, seed=0, experts=0, points=512) -> list[dict]:
    """The block weights of a Llama-shaped model (Mixtral-shaped with experts): 7 weights a layer without them."""
    rng = np.random.default_rng(seed)
    kv = kv or hidden
    attention = {"q": (hidden, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, hidden)}
    feed = {"gate": (mlp, hidden), "up": (mlp, hidden), "down": (hidden, mlp)}
    weight_of_role = {"q": 0.3, "k": 0.15, "v": 1.2, "o": 0.8, "gate": 0.9, "up": 1.1, "down": 1.6}
    rows = []
    for layer in range(layers):
        # The first and last layers matter most, as they do in trained models.
        place = 0.05 * (1 + 4 * np.exp(-layer / 1.5) + 2 * np.exp(-(layers - 1 - layer) / 2))

        def add(part, role, shape, expert=None, place=place, layer=layer):
            scale = place * weight_of_role[role] * rng.lognormal(0, 0.35) / max(1, experts if expert is not None else 1)
            name = f"model.layers.{layer}.{part}.{role}_proj"
            rows.append(weight_row(name, layer, role, shape, rng, expert, points, scale))

        for role, shape in attention.items():
            add("self_attn", role, shape)
        for role, shape in feed.items():
            if not experts:
                add("mlp", role, shape)
            for expert in range(experts):
                add(f"block_sparse_moe.experts.{expert}", role, shape, expert)
    return rows


def llama_model(vocabulary=32000, hidden=4096, dense_loss=1.633, error=0.04) -> dict:
    """What no χ changes (embedding and head), and three measured plans on rise = 1.58·sum^0.81."""
    other = 2 * vocabulary * hidden
    return {
        "other_parameters": other,
        "other_bytes": 2 * other,
        "dense_loss": dense_loss,
        "vocabulary": vocabulary,
        "points": [(x, 1.58 * x**0.81) for x in (0.006, 0.1, 0.9)],
        "error": error,
        "measure": "kl",
    }
