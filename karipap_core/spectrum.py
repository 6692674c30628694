"""Singular values of a weight, what they say (entropies, ranks, error at chi), and what pure noise would say.

Everything here but `singular_values` works on a descending float64 array `sigma` and needs NumPy alone.
Words and formulas: p_i = sigma_i^2 / sum sigma^2, entropies in nats. All quantities are blind to the scale of the
matrix, to transposition and to the order of its rows and columns. A zero matrix has entropy 0 and rank 0.
"""

import functools
import math
import warnings
from collections.abc import Callable

import numpy as np

from karipap_core.errors import InputError

EXACT_SIZE = 65_536  # matrices up to this many entries get a real SVD: milliseconds, right to the last bit
PEAKED = 1e-3  # below this entropy the Gram matrix's rounding (up to 1e-9 absolute) would show: a real SVD decides
BLOCK_BYTES = 1 << 26  # float64 working copies are made of this much, or of min(m, n) rows, at a time
TRACY_WIDOM_99 = 2.0234  # 99 % quantile of the largest eigenvalue's fluctuation, real entries (Tracy-Widom, beta = 1)
SIMULATED = 16  # nulls with a side up to this are simulated: the asymptotic formula is off by 0.2 / m^2 there
DRAWS = 10_000
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


def _weights(sigma) -> np.ndarray | None:
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
    weights = _weights(sigma)
    if weights is None:
        return 0.0
    rest = weights[1:][weights[1:] > 0]
    total = rest.sum()
    return float(np.log1p(total) - (rest * np.log(rest)).sum() / (1 + total))


def renyi2(sigma) -> float:
    """Renyi-2 entropy -ln sum p^2 in nats; never above `entropy`."""
    weights = _weights(sigma)
    if weights is None:
        return 0.0
    return float(2 * np.log1p(weights[1:].sum()) - np.log1p((weights[1:] ** 2).sum()))


def effective_rank(sigma) -> float:
    """exp(S): the number of equal singular values that would have this entropy (Roy and Vetterli 2007); 0 for zero."""
    return 0.0 if _weights(sigma) is None else math.exp(entropy(sigma))


def stable_rank(sigma) -> float:
    """sum sigma^2 / sigma_1^2, at most the rank; 0 for a zero matrix."""
    weights = _weights(sigma)
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
    weights = _weights(sigma)
    if weights is None:
        return 0
    left = tail(np.sqrt(weights))
    return int(np.argmax(left <= relative_error * left[0]))


# ---- what noise would say -------------------------------------------------------------------------------------------


def null_entropy(m: int, n: int) -> float:
    """Expected entropy of an m x n matrix of independent real Gaussians, in nats; right to about 1e-4.

    With m <= n, y = m/n, r = sqrt(y), digamma psi:

        E[S] = psi(mn/2 + 1) + ln(2/n) - y/2 - mu/m,   mu = (1-r)^2 ln(1-r) / 2 + (1+r)^2 ln(1+r) / 2 - y

    The p_i do not depend on the trace T of the Wishart matrix (Basu), so E[S] = (E[T ln T] - E[sum l ln l]) / E[T]
    holds exactly; the first term is a Gamma variable's. E[sum l ln l] is m y/2 from Marchenko-Pastur plus Bai and
    Silverstein's mean of the linear statistic f = x ln x for real entries (Ann. Probab. 32, 2004, eq. 5.13):
    (f(a) + f(b))/4 - (1/2 pi) int f / sqrt(4y - (x-1-y)^2) dx, whose integral is y. To first order this is the
    familiar ln m - m/(2n). Sides up to 16 are simulated (fixed seed) instead.
    """
    m, n = sorted((int(m), int(n)))
    if m <= 1:
        return 0.0
    if m <= SIMULATED:
        return _simulated(m, n)[0]
    y = m / n
    r = math.sqrt(y)
    lower = (1 - r) ** 2 * math.log(1 - r) if m < n else 0.0
    mu = (lower + (1 + r) ** 2 * math.log(1 + r)) / 2 - y
    half = m * n / 2 + 1
    digamma = math.log(half) - 1 / (2 * half) - 1 / (12 * half**2)  # half > 128: the next term is below 1e-10
    return digamma + math.log(2 / n) - y / 2 - mu / m


def null_deviation(m: int, n: int) -> float:
    """Standard deviation of one such matrix's entropy about `null_entropy`, in nats: an excess below 2 or 3 is noise.

    With m <= n, y = m/n: Var[S] = (2/m^2) sum_{k>=2} y^k / k (1/(k-1) - y/(k+1))^2, the variance of the same linear
    statistic: half of sum k a_k^2 over the Chebyshev coefficients a_k of x ln x on the bulk, without k = 1, which is
    the trace's. 0.71/m for a square matrix.
    """
    m, n = sorted((int(m), int(n)))
    if m <= SIMULATED:
        return _simulated(m, n)[2]
    y, k = m / n, np.arange(2, 200)
    return math.sqrt(2 * float((y**k / k * (1 / (k - 1) - y / (k + 1)) ** 2).sum())) / m


def null_tail(m: int, n: int) -> np.ndarray:
    """Expected tail(sigma) / tail(sigma)[0] of a Gaussian m x n matrix, chi = 0 .. min(m, n): the "no structure" line.

    1 - null_tail is the retained energy. From Marchenko-Pastur: with x = 1 + y + 2 sqrt(y) cos t, the largest
    eigenvalues down to x(t) carry the energy (t - sin t cos t) / pi and are the fraction
    (2/pi) (-sin t / 2r + (1+y) t / 4y - (1-y)/2y atan((1-r)/(1+r) tan(t/2))) of all. Small sides are simulated.
    """
    m, n = sorted((int(m), int(n)))
    if m <= SIMULATED:
        return tail(np.sqrt(_simulated(m, n)[1]))
    y = m / n
    r = math.sqrt(y)
    t = np.linspace(0, math.pi, 4097)
    energy = (t - np.sin(t) * np.cos(t)) / math.pi
    turn = np.arctan((1 - r) / (1 + r) * np.tan(t / 2))
    count = (2 / math.pi) * (-np.sin(t) / (2 * r) + (1 + y) * t / (4 * y) - (1 - y) / (2 * y) * turn)
    kept = np.interp(np.arange(m + 1) / m, count, energy)
    kept[0], kept[-1] = 0.0, 1.0
    return 1 - kept


@functools.lru_cache(maxsize=1024)
def _simulated(m: int, n: int) -> tuple[float, np.ndarray, float]:
    """(mean entropy, mean p_i in order, standard deviation of the entropy) of `DRAWS` Gaussian m x n matrices, m <= n.

    Always the same draws. Singular values are drawn through the triangular Bartlett factor (chi variables and
    normals, m x m whatever n is). The purity sum p^2, whose mean (m+n+1)/(mn+2) is known exactly, serves as the
    control variate of the mean.
    """
    rng = np.random.default_rng(0)
    factor = np.tril(rng.standard_normal((DRAWS, m, m)), -1)
    i = np.arange(m)
    factor[:, i, i] = np.sqrt(rng.chisquare(n - i, (DRAWS, m)))
    p = np.linalg.svd(factor, compute_uv=False) ** 2
    p /= p.sum(axis=1, keepdims=True)
    if m == 1:
        return 0.0, p.mean(axis=0), 0.0
    entropies = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1)
    purity = (p**2).sum(axis=1)
    slope = np.cov(entropies, purity)[0, 1] / purity.var(ddof=1)
    mean = entropies.mean() - slope * (purity.mean() - (m + n + 1) / (m * n + 2))
    return float(mean), p.mean(axis=0), float(entropies.std())


def bulk_deviation(sigma, shape: tuple[int, int]) -> float:
    """Standard deviation of the entries of the noise whose Marchenko-Pastur median is the median of `sigma`.

    sigma_mp = median(sigma) / sqrt(n x_median): the median does not feel a few large values (Gavish and Donoho 2014).
    0 where more than half of sigma is 0: then there is no bulk.
    """
    m, n = sorted(shape)
    left = null_tail(m, n)  # its steps are the expected eigenvalues / (sum of them); the sum is m n for unit variance
    expected = np.sqrt(-np.diff(left) * m * n)
    return float(np.median(np.asarray(sigma, dtype=np.float64)) / np.median(expected))


def bulk_edge(sigma, shape: tuple[int, int]) -> float:
    """sigma_mp (sqrt m + sqrt n): where the singular values of noise alone end (Baik, Ben Arous and Peche 2005)."""
    return bulk_deviation(sigma, shape) * (math.sqrt(shape[0]) + math.sqrt(shape[1]))


def spikes(sigma, shape: tuple[int, int]) -> tuple[int, float]:
    """(count, share of sum sigma^2) of the singular values that stand out of the bulk.

    The threshold is the bulk edge plus the 99 % Tracy-Widom width, so that a matrix of pure noise has none:
    sigma^2 > sigma_mp^2 (e^2 + 2.02 e (1/sqrt m + 1/sqrt n)^(1/3)), e = sqrt m + sqrt n.
    """
    sigma = np.asarray(sigma, dtype=np.float64)
    weights = _weights(sigma)
    if weights is None:
        return 0, 0.0
    edge = math.sqrt(shape[0]) + math.sqrt(shape[1])
    width = edge * (1 / math.sqrt(shape[0]) + 1 / math.sqrt(shape[1])) ** (1 / 3)
    threshold = (bulk_deviation(sigma, shape) / sigma.max()) ** 2 * (edge**2 + TRACY_WIDOM_99 * width)
    above = weights > max(threshold, (max(shape) * EPS32) ** 2)  # without a bulk, everything but rounding stands out
    return int(above.sum()), float(weights[above].sum() / weights.sum())


def marchenko_pastur(grid, shape: tuple[int, int], deviation: float) -> np.ndarray:
    """Density at each s of `grid` of the singular values of an m x n matrix with entries of this standard deviation.

    With x = s^2 / (n deviation^2), m <= n, y = m/n and a, b = (1 -+ sqrt y)^2: sqrt((b - x)(x - a)) / (pi y s), which
    integrates to 1. `deviation` is `bulk_deviation(sigma, shape)`.
    """
    grid = np.asarray(grid, dtype=np.float64)
    m, n = sorted(shape)
    if deviation <= 0:
        return np.zeros_like(grid)
    y = m / n
    s = np.maximum(grid, 1e-9 * deviation * math.sqrt(n))  # square matrices have a finite density at 0: its limit
    x = s**2 / (n * deviation**2)
    inside = ((1 + math.sqrt(y)) ** 2 - x) * (x - (1 - math.sqrt(y)) ** 2)
    return np.sqrt(np.maximum(inside, 0)) / (math.pi * y * s)


# ---- all of it ------------------------------------------------------------------------------------------------------


def describe(sigma, shape: tuple[int, int]) -> dict:
    """Every number of a spectrum, as the profile stores it: entropies in nats, `excess` = null_entropy - entropy.

    An excess below two or three `null_deviation` is what chance gives. `total` is sum sigma^2, `chi_at_1pct` the chi
    that leaves 1 % of it, `spike_share` the spikes' part of it.
    """
    count, share = spikes(sigma, shape)
    value, null = entropy(sigma), null_entropy(*shape)
    return {
        "entropy": value,
        "normalized_entropy": normalized_entropy(sigma, shape),
        "null_entropy": null,
        "null_deviation": null_deviation(*shape),
        "excess": null - value,
        "renyi2": renyi2(sigma),
        "effective_rank": effective_rank(sigma),
        "rank": rank(sigma, shape),
        "stable_rank": stable_rank(sigma),
        "spikes": count,
        "spike_share": share,
        "sigma_max": float(np.max(sigma, initial=0)),
        "total": float(tail(sigma)[0]),
        "chi_at_1pct": chi_at_error(sigma, 0.01),
    }


def thin(sigma, points: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """(1-based indices, values) of at most `points` singular values, evenly spaced in ln(index): enough to draw."""
    sigma = np.asarray(sigma, dtype=np.float64)
    if len(sigma) <= points:
        index = np.arange(1, len(sigma) + 1)
    else:
        index = np.unique(np.geomspace(1, len(sigma), points).round().astype(int))
    return index, sigma[index - 1]
