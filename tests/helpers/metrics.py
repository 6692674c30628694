"""Random weights and metrics, and the error of a metric written out."""

import numpy as np
import torch

from karipap_core.networks import Metric


def moment(n: int, seed: int, decay: float = 1.5) -> torch.Tensor:
    """A second moment as activations have it: a few strong directions, a long weak tail."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    return basis * torch.arange(1, n + 1, dtype=torch.float64) ** -decay @ basis.T


def metrics(out: int, n_in: int) -> dict[str, Metric]:
    C, G = moment(n_in, 1), moment(out, 2)
    return {"weight": Metric("weight"), "functional": Metric("functional", C), "loss": Metric("loss", C, G)}


def damped(matrix: torch.Tensor) -> np.ndarray:
    matrix = matrix.numpy()
    return matrix + 0.01 * np.trace(matrix) / len(matrix) * np.eye(len(matrix))


def plain_error(metric: Metric, D: np.ndarray) -> float:
    """tr(Dᵀ G D C) with the damped moments, straight from the definition."""
    C = np.eye(D.shape[1]) if metric.C is None else damped(metric.C)
    G = np.eye(D.shape[0]) if metric.G is None else damped(metric.G)
    return float(np.trace(D.T @ G @ D @ C))


def gaussian(out: int, n_in: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, n_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def metric_of(which, n_out, n_in, seed=0):
    """Moments with a long tail, which mix the digits."""
    X = random(4 * n_in, n_in, seed=seed) * torch.logspace(0, -1.5, n_in) @ random(n_in, n_in, seed=seed + 1)
    g = random(4 * n_out, n_out, seed=seed + 2) * torch.logspace(0, -1, n_out) @ random(n_out, n_out, seed=seed + 3)
    C, G = X.T @ X / len(X), 1e-6 * g.T @ g / len(g)
    return Metric(which, C=None if which == "weight" else C, G=G if which == "loss" else None)
