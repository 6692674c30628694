"""Symmetric products, of which half is made and the rest is the same."""

import torch

PANELS = 512  # sides below which the whole product is as quick


def gram(matrix: torch.Tensor) -> torch.Tensor:
    """M Mᵀ (m, m) of a matrix M (m, n), in its dtype: 9/16 of the products of the plain one."""
    size = len(matrix)
    if size < PANELS:
        return matrix @ matrix.T
    found, panel = matrix.new_empty(size, size), -(-size // 8)
    for start in range(0, size, panel):
        torch.mm(matrix[start:], matrix[start : start + panel].T, out=found[start:, start : start + panel])
    return mirrored(found)


def mirrored(lower: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix of which this is the lower triangle, in its place."""
    size = len(lower)
    for start in range(0, size, PANELS):
        end = min(size, start + PANELS)
        square = lower[start:end, start:end]
        square.copy_(square.tril() + square.tril(-1).T)
        lower[start:end, end:] = lower[end:, start:end].T
    return lower
