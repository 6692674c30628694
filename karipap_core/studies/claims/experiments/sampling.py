"""Dequantized low rank (Tang, arXiv:1807.04271; Chia et al., arXiv:1910.06151): sampled rows and columns in the place
of a decomposition, beside randomized and exact SVD on real weights. A floor and a curiosity: nothing here compresses by
it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from karipap_core.errors import InputError
from karipap_core.evaluation.speed import Took, took
from karipap_core.plan.study import Study
from karipap_core.progress import Progress
from karipap_core.spectra.leading import leading_eigenvectors
from karipap_core.spectra.symmetric import gram
from karipap_core.studies.claims.experiments.bench import Bench, grid, kept_chi, layers_of, lines, matrix_of
from karipap_core.studies.claims.experiments.registry import experiment

KEPT = 0.3
CLOSE = 1.1  # squared error over the truncated SVD's that counts as reached
MOST = 16  # rows drawn over the rows there are, up to which it is tried
SEEDS = (0, 1, 2)
OVERSAMPLED, ITERATIONS = 8, 2  # of randomized SVD


@experiment("sampling")
def sampling(study: Study, progress: Progress) -> dict:
    """Samples and time to come within a tenth of the truncated SVD's squared error, on the weights of a layer."""
    bench, layers = Bench(study, progress), layers_of(study)
    if not layers:
        raise InputError(f"{study.checkpoint.name} has no layer whose weights can be compressed.")
    weights = [weight for weight in study.measurable if weight.layer == layers[len(layers) // 2]]
    rows = []
    for number, weight in enumerate(weights):
        progress("weights", number, len(weights), weight.name)
        W = matrix_of(study, weight.name).to(study.device)
        if bool(W.any()):
            rows.append({"name": weight.name} | compared(W, kept_chi(weight.shape, KEPT)))
    progress("weights", len(weights), len(weights))
    if not rows:
        raise InputError(f"The weights of the layer in the middle of {study.checkpoint.name} are all zeros.")
    return bench.document(
        verdict(rows),
        _measured(rows),
        {"rows": rows, "close": CLOSE},
        grid(
            [
                "weight",
                "χ",
                "longer side",
                "rows drawn",
                "error over SVD's",
                "error with χ rows",
                "ms sampled",
                "CPU ms sampled",
                "ms exact",
                "CPU ms exact",
                "ms randomized",
                "CPU ms randomized",
                "error randomized",
            ],
            [
                [r[key] for key in ("name", "chi", "longer", "drawn", "error", "error_chi")]
                + [1e3 * r[f"{way}_{clock}"] for way in ("sampled", "exact", "randomized") for clock in ("wall", "cpu")]
                + [r["randomized_error"]]
                for r in rows
            ],
        ),
        [
            lines(
                "Error by rows drawn",
                "Rows drawn over the rows there are",
                "Squared error over the truncated SVD's",
                [(_short(r["name"]), [x for x, _ in r["curve"]], [y for _, y in r["curve"]]) for r in rows],
                log=True,
            )
        ],
        [
            "The sampled decomposition is given the lengths of all rows for nothing, as its papers suppose, and what "
            "it makes is judged by projecting the weight on it, which is not timed. Medians of three draws, float64."
        ],
    )


@dataclass(frozen=True)
class Lengths:
    """What the papers suppose to be at hand: the squared length of each row of a matrix, as chances to draw it."""

    chances: torch.Tensor
    total: float

    @classmethod
    def of(cls, A: torch.Tensor) -> "Lengths":
        squares = A.square().sum(1)
        return cls(squares / squares.sum(), float(squares.sum()))


def drawn_rows(A: torch.Tensor, lengths: Lengths, count: int, generator: torch.Generator) -> torch.Tensor:
    """S (count, columns): rows of A drawn with replacement by their squared lengths, each over √(count · its chance),
    so that E[Sᵀ S] = Aᵀ A (Frieze, Kannan and Vempala, J. ACM 51 (2004), Lemma 2)."""
    chosen = torch.multinomial(lengths.chances.cpu(), count, replacement=True, generator=generator).to(A.device)
    return A[chosen] / (count * lengths.chances[chosen]).sqrt()[:, None]


def sampled_basis(A: torch.Tensor, lengths: Lengths, chi: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """V (columns, ≤ χ) with orthonormal columns that nearly span what the χ leading right singular vectors of A do:
    `count` rows S of A, `count` columns of S drawn in the same way, the left singular vectors u_i and values σ_i of
    that small matrix, and Sᵀ u_i / σ_i made orthonormal. Where that would draw more columns than there are, all are
    taken once: the leading eigenvectors of Sᵀ S. Frieze, Kannan and Vempala's algorithm, the core of Tang's.
    Cost O(count³ + count · columns · χ), at most O(count · columns²), whatever the number of rows of A."""
    S = drawn_rows(A, lengths, count, generator)
    if count >= A.shape[1]:
        return leading_eigenvectors(gram(S.T), chi)
    small = drawn_rows(S.T, Lengths.of(S.T), count, generator).T
    U, sigma, _ = torch.linalg.svd(small, full_matrices=False)
    keep = int((sigma[:chi] > 1e-9 * sigma[0]).sum())
    return torch.linalg.qr(S.T @ (U[:, :keep] / sigma[:keep])).Q


def left_out(A: torch.Tensor, V: torch.Tensor) -> float:
    """‖A − A V Vᵀ‖², V with orthonormal columns."""
    return float((A - (A @ V) @ V.T).square().sum())


def compared(W: torch.Tensor, chi: int) -> dict:
    """All that is measured of one weight at χ: W (out, in), float64. The longer side counts as rows, of which the
    sampled algorithm's time is independent."""
    A = W if W.shape[0] >= W.shape[1] else W.T
    device, lengths = A.device, Lengths.of(A)
    exact = _timed(device, lambda _: leading_eigenvectors(gram(A.T), chi))  # as `lowrank` does it
    sigma = torch.linalg.svdvals(A)
    best = max(float(sigma[chi:].square().sum()), 1e-12 * lengths.total)
    curve: list[tuple[float, float]] = []
    count, rows = chi, len(A)
    while True:
        errors = [left_out(A, sampled_basis(A, lengths, chi, count, _seeded(seed))) for seed in SEEDS]
        curve.append((count / rows, float(np.median(errors)) / best))
        if curve[-1][1] <= CLOSE or 2 * count > MOST * rows:
            break
        count *= 2
    sampled = _timed(device, lambda seed: sampled_basis(A, lengths, chi, count, _seeded(seed)))
    few = min(chi + OVERSAMPLED, *A.shape)

    def randomized(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.svd_lowrank(A, q=few, niter=ITERATIONS)[2][:, :chi]

    with torch.random.fork_rng():
        quick = _timed(device, randomized)
        quick_error = float(np.median([left_out(A, randomized(seed)) for seed in SEEDS])) / best
    return {
        "chi": chi,
        "best_share": best / lengths.total,
        "longer": rows,
        "drawn": count,
        "reached": curve[-1][1] <= CLOSE,
        "error": curve[-1][1],
        "error_chi": curve[0][1],
        "curve": curve,
        "randomized_error": quick_error,
    } | {
        f"{way}_{clock}": getattr(of, clock)
        for way, of in (("exact", exact), ("sampled", sampled), ("randomized", quick))
        for clock in ("wall", "cpu")
    }


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _timed(device: torch.device, run: Callable[[int], object]) -> Took:
    run(0)
    return Took.median([took(device, lambda seed=seed: run(seed)) for seed in SEEDS])  # type: ignore[misc]


def _short(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _times(rows: Sequence[Mapping], way: str, clock: str) -> float:
    return sum(row[f"{way}_{clock}"] for row in rows) / max(sum(row[f"exact_{clock}"] for row in rows), 1e-12)


def _measured(rows: Sequence[Mapping]) -> dict[str, str]:
    drawn = sorted(row["drawn"] / row["longer"] for row in rows)
    reached = sum(row["reached"] for row in rows)
    chi = float(np.median([row["error_chi"] for row in rows]))
    quick = float(np.median([row["randomized_error"] for row in rows]))
    return {
        "samples": f"{drawn[0]:.2g} to {drawn[-1]:.2g} times as many; reached for {reached} of {len(rows)} weights",
        "error": f"{chi:.3g} times (median)",
        "time": f"{_times(rows, 'sampled', 'wall'):.2f} times (CPU {_times(rows, 'sampled', 'cpu'):.2f} times)",
        "randomized": f"{_times(rows, 'randomized', 'wall'):.2f} times the time (CPU "
        f"{_times(rows, 'randomized', 'cpu'):.2f} times) at {quick:.4g} times the error",
        "when": f"for {sum(map(wins, rows))} of {len(rows)} weights here",
    }


def wins(row: Mapping) -> bool:
    """Whether sampling came within a tenth of the SVD's error from fewer rows than there are, in less time, by both
    clocks, than exact and randomized SVD took."""
    rivals = [way for way in ("exact", "randomized") if way == "exact" or row["randomized_error"] <= CLOSE]
    return (
        bool(row["reached"])
        and row["drawn"] < row["longer"]
        and all(row[f"sampled_{clock}"] < row[f"{way}_{clock}"] for way in rivals for clock in ("wall", "cpu"))
    )


def verdict(rows: Sequence[Mapping]) -> str:
    """In words: for how many weights sampling is both close and quickest, how many rows it needs, and who wins."""
    won = sum(wins(row) for row in rows)
    drawn = float(np.median([row["drawn"] / row["longer"] for row in rows]))
    reached = sum(row["reached"] for row in rows)
    says = "It pays" if won == len(rows) else f"It pays for {won} of {len(rows)} weights" if won else "It does not pay"
    need = (
        f"to come within a tenth of the truncated SVD's error it draws {drawn:.2g} times as many rows as there are "
        "(median)"
        if reached == len(rows)
        else f"for {len(rows) - reached} of {len(rows)} weights it does not come within a tenth of the truncated SVD's "
        f"error with {MOST} times as many rows as there are"
    )
    share = f"{float(np.median([row['best_share'] for row in rows])):.0%}".replace("%", " %")
    return (
        f"{says} here: {need} and takes {_times(rows, 'sampled', 'wall'):.2f} times the exact decomposition's time; "
        f"randomized SVD takes {_times(rows, 'randomized', 'wall'):.2f} times. At this χ the truncated SVD itself "
        f"leaves {share} of ‖W‖² (median)."
    )
