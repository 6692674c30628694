"""A few leading eigenvectors against all of them."""

import pytest
import torch

from karipap_core.spectra.leading import SHARE, SMALL, leading_eigenvectors


def matrix(kind: str, n: int) -> torch.Tensor:
    W = torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if kind == "falling":
        return W * torch.arange(1, n + 1, dtype=torch.float64) ** -0.7
    if kind == "outliers":
        return W * torch.logspace(3, 0, n, dtype=torch.float64)[:, None]
    return W[:, :40] if kind == "low rank" else W * (kind != "zero")


@pytest.mark.parametrize("kind", ["noise", "falling", "outliers", "low rank", "zero"])
@pytest.mark.parametrize("n", [1024, 300])
def test_what_is_cut_off_is_the_least(kind, n):
    W, count = matrix(kind, n), n // 16
    gram = W @ W.T
    assert count * SHARE <= n and (n > SMALL) == (n == 1024)
    V = leading_eigenvectors(gram, count)
    torch.testing.assert_close(V.T @ V, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-10)
    every = torch.linalg.eigvalsh(gram)
    for some in (count, count // 2):  # the leading part of a network of more is the network of less
        left = (W - V[:, :some] @ (V[:, :some].T @ W)).square().sum().item()
        assert left <= every[:-some].clamp(min=0).sum().item() * (1 + 1e-8) + 1e-12 * every.sum().item()
    assert torch.equal(leading_eigenvectors(gram, count), V)
