"""Singular values of a weight, what they say (entropies, ranks, error at chi), and what pure noise would say.

Everything here but `singular_values` works on a descending float64 array `sigma` and needs NumPy alone.
Words and formulas: p_i = sigma_i^2 / sum sigma^2, entropies in nats. All quantities are blind to the scale of the
matrix, to transposition and to the order of its rows and columns. A zero matrix has entropy 0 and rank 0.
"""

import math
import warnings
from collections.abc import Callable

import numpy as np

from karipap_core.errors import InputError

EXACT_SIZE = 65_536  # matrices up to this many entries get a real SVD: milliseconds, right to the last bit
PEAKED = 1e-3  # below this entropy the Gram matrix's rounding (up to 1e-9 absolute) would show: a real SVD decides
BLOCK_BYTES = 1 << 26  # float64 working copies are made of this much, or of min(m, n) rows, at a time
EPS32 = float(np.finfo(np.float32).eps)
METRICS = ("weight", "functional", "loss")


def pick_device(device: str = "auto") -> str:
    """The device to work on: for "auto" CUDA where torch sees one, else the CPU.

    InputError for a device that does not exist here.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise InputError(f"device: {device!r} is not here, it is not a device; use auto, cpu or cuda.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device: torch sees no CUDA here, so {device!r} cannot be used; use auto or cpu.")
    return device


def singular_values(
    matrix, device: str = "auto", name: str = "the matrix", notice: Callable[[str], None] = warnings.warn
) -> np.ndarray:
    """Singular values of `matrix` (m, n), descending, float64, min(m, n) of them.

    sigma^2 are the eigenvalues of the smaller Gram matrix, summed in float64 over blocks of the longer side, the
    entries scaled by their maximum first (so 1e-20 and 1e20 are alike). For float32 entries the entropy is right to
    1e-8 relative and sigma down to 1e-7 sigma_1; small matrices and nearly rank-one ones, where that would not be
    enough, go through a real SVD (of the R factor, for the memory). Cost: m n min(m, n) multiply-adds / 2 plus the
    eigenvalues; memory: about 2 min(m, n)^2 float64, never a float64 copy of a long matrix.

    `device`: "auto", "cpu", "cuda", ...; where an accelerator fails (memory, no float64) the CPU does it and
    `notice` is told. NaN or Inf: InputError with `name`.
    """
    import torch

    matrix = torch.as_tensor(matrix).detach()
    if matrix.ndim != 2:
        raise InputError(f"{name} has shape {tuple(matrix.shape)}; singular values need a matrix (two dimensions).")
    if matrix.numel() == 0:
        return np.zeros(0)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    device = pick_device(device)
    if device != "cpu":
        try:
            return _singular_values(tall, device, name)
        except (
            RuntimeError,
            TypeError,
        ) as failure:  # memory, solver, or a device without float64
            reason = str(failure).strip().splitlines()[0] if str(failure).strip() else type(failure).__name__
            notice(f"{name}: singular values computed on the CPU, because {device} failed: {reason}")
    return _singular_values(tall.cpu(), "cpu", name)


def singular_values_of_product(left, right) -> np.ndarray:
    """Singular values of `left` (m, r) · `right` (r, n), as `singular_values` gives them: those of the product of both
    R factors, and zeros. Cost: (m + n) r² multiply-adds; the product is never formed."""
    import torch

    tall = [torch.as_tensor(factor).detach().to("cpu", torch.float64) for factor in (left, right.T)]
    first, second = (torch.linalg.qr(factor, mode="r").R for factor in tall)
    sigma = torch.linalg.svdvals(first @ second.T).numpy()
    return np.concatenate([sigma, np.zeros(max(min(len(factor) for factor in tall) - len(sigma), 0))])


def _singular_values(tall, device: str, name: str) -> np.ndarray:
    import torch

    rows, k = tall.shape
    blocks = tall.split(max(k, BLOCK_BYTES // (8 * k)))
    scale = max(float(block.abs().max()) for block in blocks)
    if not math.isfinite(scale):
        raise InputError(f"{name} has NaN or Inf among its entries; a spectrum needs finite numbers.")
    if scale == 0:
        return np.zeros(k)

    def scaled():
        for block in blocks:
            yield block.to(device).to(torch.float64) / scale  # moved as stored: a quarter of float64's bytes

    def exact() -> np.ndarray:
        factor = torch.zeros(0, k, dtype=torch.float64, device=device)
        for block in scaled():
            factor = torch.cat([factor, block])
            if len(blocks) > 1:
                factor = torch.linalg.qr(factor, mode="r").R
        return scale * torch.linalg.svdvals(factor).cpu().numpy()

    if rows * k <= EXACT_SIZE:
        return exact()
    gram = torch.zeros(k, k, dtype=torch.float64, device=device)
    panel = max(256, -(-k // 8))  # eigvalsh reads the lower triangle only, so half the products need never be made
    for block in scaled():
        for start in range(0, k, panel):
            gram[start:, start : start + panel].addmm_(block[:, start:].T, block[:, start : start + panel])
    sigma = torch.linalg.eigvalsh(gram, UPLO="L").clamp_(min=0).sqrt_().flip(0).cpu().numpy()
    return exact() if entropy(sigma) < PEAKED else scale * sigma


# ---- what a spectrum says -------------------------------------------------------------------------------------------


def relative_squares(sigma) -> np.ndarray | None:
    """w_i = (sigma_i / sigma_1)^2, descending, so w_1 = 1 exactly; None for a zero matrix."""
    sigma = np.sort(np.asarray(sigma, dtype=np.float64))[::-1]
    return None if sigma.size == 0 or sigma[0] == 0 else (sigma / sigma[0]) ** 2


def entropy(sigma) -> float:
    """Von Neumann entropy S = -sum p ln p of p = sigma^2 / sum sigma^2, in nats; 0 <= S <= ln(rank).

    Computed as ln(1 + r) - sum w ln w / (1 + r) with w = (sigma / sigma_1)^2 and r the sum of all w but the first, so
    that an almost pure spectrum (S of 1e-15) keeps its digits.

    >>> round(entropy([1.0, 1.0]), 6)  # ln 2
    0.693147
    """
    weights = relative_squares(sigma)
    if weights is None:
        return 0.0
    rest = weights[1:][weights[1:] > 0]
    total = rest.sum()
    return float(np.log1p(total) - (rest * np.log(rest)).sum() / (1 + total))


def renyi2(sigma) -> float:
    """Renyi-2 entropy -ln sum p^2 in nats; never above `entropy`."""
    weights = relative_squares(sigma)
    if weights is None:
        return 0.0
    return float(2 * np.log1p(weights[1:].sum()) - np.log1p((weights[1:] ** 2).sum()))


def effective_rank(sigma) -> float:
    """exp(S): the number of equal singular values that would have this entropy (Roy and Vetterli 2007); 0 for zero."""
    return 0.0 if relative_squares(sigma) is None else math.exp(entropy(sigma))


def stable_rank(sigma) -> float:
    """sum sigma^2 / sigma_1^2, at most the rank; 0 for a zero matrix."""
    weights = relative_squares(sigma)
    return 0.0 if weights is None else float(weights.sum())


def normalized_entropy(sigma, shape: tuple[int, int]) -> float:
    """S / ln(min(shape)), between 0 and 1; 0 where the smaller side is 1."""
    smaller = min(shape)
    return entropy(sigma) / math.log(smaller) if smaller > 1 else 0.0


def rank(sigma, shape: tuple[int, int]) -> int:
    """How many sigma exceed max(shape) * eps * sigma_1 with float32's eps: NumPy's rule for a float32 matrix."""
    sigma = np.asarray(sigma, dtype=np.float64)
    return int((sigma > max(shape) * EPS32 * sigma.max(initial=0)).sum())


def tail(sigma) -> np.ndarray:
    """sum_{i > chi} sigma_i^2 for chi = 0 .. r: the squared error of keeping chi (Eckart-Young); r + 1 numbers."""
    squares = np.sort(np.asarray(sigma, dtype=np.float64) ** 2)
    return np.concatenate([np.cumsum(squares)[::-1], [0.0]])


def chi_at_error(sigma, relative_error: float) -> int:
    """Smallest chi whose squared error is at most `relative_error` of sum sigma^2 (0.01: keeps 99 % of the weight)."""
    weights = relative_squares(sigma)
    if weights is None:
        return 0
    left = tail(np.sqrt(weights))
    return int(np.argmax(left <= relative_error * left[0]))


def thin(sigma, points: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """(1-based indices, values) of at most `points` singular values, evenly spaced in ln(index): enough to draw."""
    sigma = np.asarray(sigma, dtype=np.float64)
    if len(sigma) <= points:
        index = np.arange(1, len(sigma) + 1)
    else:
        index = np.unique(np.geomspace(1, len(sigma), points).round().astype(int))
    return index, sigma[index - 1]
