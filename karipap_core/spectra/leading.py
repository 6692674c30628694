"""The leading eigenvectors of a large positive matrix, where only some of them are wanted."""

import torch

SMALL = 512  # sides up to which all eigenvectors at once are as quick
SHARE = 16  # a larger part of all than one in so many: all at once
BLOCK = 32
CHECKED = 2  # blocks between two looks at what has been found
SETTLED = 1e-6  # of what stays outside: what a look may still gain; what later ones would gain is a thousandth of it


def leading_eigenvectors(gram: torch.Tensor, count: int) -> torch.Tensor:
    """The eigenvectors (n, count) of the `count` largest eigenvalues of a symmetric positive matrix (n, n), the largest
    first, in float64.

    For few of a large matrix by block Lanczos with full orthogonalization, until what they hold of the trace does not
    rise any more: as truncations the projections are then as good as the exact ones to 1e-8 of what is cut off,
    in a fraction of the time. Golub and Underwood, "The block Lanczos method" (1977).
    """
    n = len(gram)
    found = _lanczos(gram, count) if n > SMALL and count * SHARE <= n else None
    return torch.linalg.eigh(gram).eigenvectors[:, -count:].flip(1) if found is None else found


def _lanczos(gram: torch.Tensor, count: int) -> torch.Tensor | None:
    """None where the Krylov space ends early (a matrix of low rank) or has to be as large as half of the whole."""
    n = len(gram)
    start = torch.randn(n, BLOCK, generator=torch.Generator().manual_seed(0), dtype=gram.dtype).to(gram.device)
    most = n // 2 // BLOCK * BLOCK
    basis, projected = gram.new_empty(n, most), gram.new_zeros(most, most)
    last, trace, held = torch.linalg.qr(start).Q, gram.trace().item(), 0.0
    for size in range(BLOCK, most + 1, BLOCK):
        basis[:, size - BLOCK : size] = last
        known, image = basis[:, :size], gram @ last
        for _ in range(2):  # once leaves rounding errors of what is taken away
            inside = known.T @ image
            projected[:size, size - BLOCK : size] += inside
            image = image - known @ inside
        if size >= 2 * count and size // BLOCK % CHECKED == 0:
            whole = projected[:size, :size]
            before, held = held, torch.linalg.eigvalsh(whole, UPLO="U")[-count:].sum().item()
            if held - before <= SETTLED * max(trace - held, 1e-4 * trace):
                return known @ torch.linalg.eigh(whole, UPLO="U").eigenvectors[:, -count:].flip(1)
        last, left = torch.linalg.qr(image)
        if left.diagonal().abs().min() <= 1e-12 * trace / n:
            return None
    return None
