"""What a random matrix of the same shape shows: null entropies, Marchenko-Pastur bulk and spikes beyond it."""

import functools
import math

import numpy as np

from karipap_core.spectra.spectrum import EPS32, relative_squares, tail

TRACY_WIDOM_99 = 2.0234  # 99 % quantile of the largest eigenvalue's fluctuation, real entries (Tracy-Widom, beta = 1)
SIMULATED = 16  # nulls with a side up to this are simulated: the asymptotic formula is off by 0.2 / m^2 there
DRAWS = 10_000


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
    weights = relative_squares(sigma)
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
