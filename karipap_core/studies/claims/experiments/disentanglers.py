"""Disentanglers (arXiv:2410.17397): χ′ = 1 between circuits, with the circuits counted."""

import math
from functools import partial

import numpy as np
import torch

from karipap_core.networks import NETWORKS
from karipap_core.networks.base import Spec
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.mpo import Mpo
from karipap_core.plan.study import Study
from karipap_core.progress import Progress
from karipap_core.studies.claims.experiments.bench import Bench, bars, fitting, grid, matrix_of, middle
from karipap_core.studies.claims.experiments.registry import experiment

LARGEST_FIT = 2**20  # numbers of a weight whose gates are fitted: some ten seconds


def padded_mpo(n_out: int, n_in: int, chi: int) -> tuple[Mpo, tuple[int, int]]:
    """The paper's MPO: both sides padded to powers of two (returned), one site for each pair of qubits, the surplus
    qubits of the longer side on sites of their own at the left."""
    qubits = [max(1, math.ceil(math.log2(n))) for n in (n_out, n_in)]
    sites = max(*qubits, 2)
    sides = [(1,) * (sites - q) + (2,) * q for q in qubits]
    padded = 2 ** qubits[0], 2 ** qubits[1]
    return Mpo.for_shape(*padded, chi, out=sides[0], in_=sides[1]), padded


def angles(size: int) -> int:
    """Free parameters of an orthogonal matrix."""
    return size * (size - 1) // 2


def product_spectrum(sigma: np.ndarray) -> np.ndarray:
    """The singular values s ⊗ s′ ⊗ … (each of two numbers) nearest to `sigma`, descending, 2ⁿ ≥ len(sigma) of them.

    Orthogonal circuits on whole registers can bring χ′ = 1 to any spectrum of that form and none other, and for given
    values the best they do is to align singular vectors (von Neumann's trace inequality): what is left is
    ‖σ − s ⊗ s′ …‖. With s = (1, a) the overlap of σ with the sorted, normalized product is climbed in each a in turn
    (grids, ever finer), from geometric series and from a few random starts; the scale follows.
    """
    n = max(1, math.ceil(math.log2(max(len(sigma), 2))))
    target = np.zeros(2**n)
    target[: len(sigma)] = np.sort(sigma)[::-1]
    rng = np.random.default_rng(0)
    starts = [np.array([decay ** (2**k) for k in range(n)]) for decay in (0.5, 0.9, 0.97, 0.99, 0.997)]
    starts += [rng.random(n) for _ in range(5)]
    best = max((_climbed(start, target, 3) for start in starts), key=lambda found: found[0])[1]
    spectrum = _spectra(_climbed(best, target, 12)[1][None])[0]
    return spectrum * (spectrum @ target) / (spectrum @ spectrum)


def _climbed(a: np.ndarray, target: np.ndarray, rounds: int) -> tuple[float, np.ndarray]:
    """(overlap, a) after so many rounds over all coordinates, the grid's step shrinking each time."""
    a, score = a.copy(), float(_overlap(_spectra(a[None]), target)[0])
    for number in range(rounds):
        for k in range(len(a)):
            width = 0.6 ** max(0, number - 2)
            grid = np.clip(a[k] + width * np.linspace(-1, 1, 33), 0, 1)
            tried = np.repeat(a[None], len(grid), 0)
            tried[:, k] = grid
            scores = _overlap(_spectra(tried), target)
            if scores.max() > score:
                score, a = float(scores.max()), tried[scores.argmax()]
    return score, a


def _spectra(a: np.ndarray) -> np.ndarray:
    """(1, a_1) ⊗ (1, a_2) ⊗ …, sorted descending, for every row of a (count, n)."""
    products = np.ones((len(a), 1))
    for k in range(a.shape[1]):
        products = np.concatenate([products, products * a[:, k : k + 1]], 1)
    return -np.sort(-products, axis=1)


def _overlap(spectra: np.ndarray, target: np.ndarray) -> np.ndarray:
    return spectra @ target / np.linalg.norm(spectra, axis=1)


@experiment("disentanglers")
def disentanglers(study: Study, progress: Progress) -> dict:
    """χ′ = 1 between ideal circuits, χ = 1 without, an SVD with the circuits' parameters, and local gates that can be
    stored, on one weight."""
    bench, weight = Bench(study, progress), middle(study)[0]
    n_out, n_in = weight.shape
    counted = {str(chi): padded_mpo(576, 192, chi)[0].parameters for chi in (1, 2, 5, 10, 50, 256)}
    of_paper = angles(1024) + angles(256)
    W = matrix_of(study, weight.name)
    spec, padded = padded_mpo(n_out, n_in, 1)
    circuits = angles(padded[0]) + angles(padded[1])
    low = fitting(LowRank.for_shape(n_out, n_in, 1), circuits, lambda s: s.parameters)

    def ideal() -> torch.Tensor:
        U, sigma, V = torch.linalg.svd(W, full_matrices=False)
        product = torch.as_tensor(product_spectrum(sigma.numpy())[: len(sigma)])
        return (U * product) @ V

    def plain() -> torch.Tensor:
        wide = torch.zeros(padded, dtype=W.dtype)
        wide[:n_out, :n_in] = W
        return spec.dense(spec.start(wide))[:n_out, :n_in]

    def fitted(form: Spec) -> torch.Tensor:
        return form.dense([core.double() for core in form.decompose(W)])

    forms = {
        "with": ("χ′ = 1 with circuits", spec.parameters + circuits, ideal),
        "without": ("χ = 1 without circuits", spec.parameters, plain),
        "svd": (f"SVD, χ = {low.chi[0]}", low.parameters, lambda: fitted(low)),
    }
    half: dict[str, type[Spec]] = {
        "local": NETWORKS["disentangled"],
        "local_mpo": NETWORKS["mpo"],
        "local_svd": LowRank,
    }
    if weight.parameters <= LARGEST_FIT:
        for key, kind in half.items():
            form = fitting(kind.for_shape(n_out, n_in, 1), weight.parameters / 2, lambda s: s.parameters)
            label = f"{form.network}, χ = {max(form.chi)}, half the parameters"
            forms[key] = (label, form.parameters, partial(fitted, form))
    rows = {}
    for number, (key, (label, parameters, make)) in enumerate(forms.items()):
        progress("forms", number, len(forms), label)
        matrix = make()
        error = float((W - matrix).square().sum() / W.square().sum())
        harm = bench.cut([(weight.name, matrix)])
        rows[key] = {"label": label, "parameters": parameters, "error": error} | harm
    progress("forms", len(forms), len(forms))
    measured = {
        "chi1": ", ".join(f"{count:,}" for count in counted.values()),
        "circuits": f"{of_paper:,}",
        "total": f"{(counted['1'] + of_paper) / (576 * 192):.2f} (circuits counted)",
        "here": f"{spec.parameters:,} MPO + {circuits:,} circuits, "
        f"{(spec.parameters + circuits) / weight.parameters:.0%} of the weight's {weight.parameters:,}",
    } | {
        key: f"{_percent(bench, rows[key])}; {rows[key]['error']:.1%} of ‖W‖² lost"
        for key in ("with", "without", "svd")
    }
    measured["svd"] += f" (χ = {low.chi[0]})"
    if "local" in rows:
        measured["local"] = " / ".join(f"{rows[key]['error']:.1%}" for key in half) + " of ‖W‖² lost"
    return bench.document(
        _verdict(measured, rows, weight.parameters),
        measured,
        {
            "counted": counted,
            "circuits_of_paper": of_paper,
            "weight": weight.name,
            "shape": list(weight.shape),
            "padded": list(padded),
            "circuits": circuits,
            "rows": rows,
        },
        grid(
            ["form", "parameters, all counted", "squared error of W", bench.unit, "rise in loss"],
            [[row["label"], row["parameters"], row["error"], row["damage"], row["rise"]] for row in rows.values()],
        ),
        [
            bars(
                f"Numbers for {weight.name}",
                "Parameters",
                ["MPO, χ′ = 1", "its circuits", "the weight itself"],
                [spec.parameters, circuits, weight.parameters],
                log=True,
            )
        ],
        [f"Measured on {weight.name}, {n_out} × {n_in}, padded to {padded[0]} × {padded[1]} for the paper's form."],
    )


def _verdict(measured: dict, rows: dict, dense: int) -> str:
    from karipap_core.studies.claims.catalogue import CLAIMS

    counts = {row.key: row.value for row in CLAIMS["disentanglers"].published if row.key in ("chi1", "circuits")}
    met = all(measured[key] == value for key, value in counts.items())
    paper, svd = rows["with"], rows["svd"]
    return (
        f"The published counts are {'met to the last digit' if met else 'not met'}. With the circuits counted, χ′ = 1 "
        f"needs {paper['parameters']:,} numbers for a weight of {dense:,}; an SVD with no more does "
        f"{'less' if svd['damage'] < paper['damage'] else 'more'} damage ({svd['damage']:.3g} against "
        f"{paper['damage']:.3g})."
    )


def _percent(bench: Bench, row: dict) -> str:
    if not bench.causal:
        return bench.words(row)
    return f"{math.expm1(min(row['rise'], 700)):+z.2%} perplexity, KL {row['damage']:.3g}"
