"""Lower the metric error of a network's cores, all of them together, from a start that is already good.

Alternating least squares improves one core at a time; where the metric is ill-conditioned, and second moments of real
activations are, the cores have to move together. A 256×256 query of a trained model, balanced on two sites, kept 0.3,
loss metric: L-BFGS on all cores is at .0055 of the total after 64 evaluations and .0043 after 140, sweeps of conjugate
gradients over single cores at .0073 and .0056. A start from the Kronecker-whitened tensor ends no lower than one from
the plain TT-SVD. An evaluation costs one G (W − Ŵ) C: in² out + in out² multiply-adds. Where that is too much, a
round minimizes the error's expansion around its start, whose slope is exact and whose curvature comes from
`kronecker.Factored` moments.
Nothing here depends on what the network is.
"""

from collections.abc import Callable, Sequence

import torch

from karipap_core.networks.kronecker import Factored
from karipap_core.progress import Progress, silent
from karipap_core.spectra.metric import Metric

EVALUATIONS = 24  # in a round: what lies between two exact measurements of the error
MEMORY = 20  # steps that L-BFGS remembers: 5 end within 3 % of 20 and 60 does no better
ROUNDS = 8
SINGLE_IS_ENOUGH = 1e-4  # relative error above which float32 evaluations take the same path as float64 ones
ENOUGH = 1e-15  # relative error at which a fit is exact
AFFORDABLE = 4e10  # multiply-adds of an exact evaluation: a second of one thread, reached at 2700 × 2700
MORE = 2  # rounds with Factored moments for each exact one: the first few find the right caution
MOST_CAUTION = 4**5

Dense = Callable[[Sequence[torch.Tensor]], torch.Tensor]  # cores → Ŵ
Moment = torch.Tensor | Factored | None  # None is the identity


def refine(
    dense: Dense,
    cores: Sequence[torch.Tensor],
    W: torch.Tensor,
    metric: Metric,
    rounds: int = ROUNDS,
    tolerance: float = 0.02,
    progress: Progress = silent,
    exact: bool | None = None,
    factors: tuple[Sequence[int], Sequence[int]] | None = None,
) -> tuple[list[torch.Tensor], list[float]]:
    """Minimizes ‖A (W − dense(cores)) B‖² over all cores by L-BFGS with a strong Wolfe search.

    dense : differentiable map from cores to Ŵ (out, in).  cores : the start, float64; balance its bonds first.
    rounds : at most this many, `EVALUATIONS` each; stops earlier when one gains less than `tolerance` of the error.
    exact : True evaluates G (W − Ŵ) C with the moments themselves; False lets `Factored` ones stand in for those sides
    where they pay, and does `MORE` rounds; None (default) is False where an evaluation is over `AFFORDABLE`.
    factors : the digits of (out, in) that the Kronecker products follow; None: each side in two.
    Returns the float64 cores and the absolute error before the first round and after each, measured in float64 with the
    moments themselves whatever `exact` says: it never rises, for a round that would raise it is dropped.

    With Factored moments G̃ and C̃ a round from Ŵ₀ minimizes ‖A D₀ B‖² + 2 ⟨δ, G D₀ C⟩ + s ⟨δ, G̃ δ C̃⟩, D₀ = W − Ŵ₀ and
    δ = Ŵ₀ − Ŵ: it stands still only where the error itself does. The caution s starts at 1 and is raised fourfold where
    a round would raise the error, whose curvature G̃ and C̃ then hold too low.
    """
    W, cores = W.double(), list(cores)
    moments = [metric.damped(side, W.device) for side in "GC"]
    standing = None
    if exact is False or exact is None and evaluation_cost(W, metric) > AFFORDABLE:
        standing = stand_ins(moments, factors or ((W.shape[0],), (W.shape[1],)))
    total = metric.absolute(W)
    errors = [metric.absolute(W - dense(cores))]
    descent, caution = None, 1.0
    rounds *= MORE if standing else 1
    for done in range(rounds):
        progress("refine", done, rounds, message=f"metric error {errors[-1] / total:.4g}" if total else "zero weight")
        if errors[-1] <= ENOUGH * total:
            break
        dtype = torch.float32 if errors[-1] > SINGLE_IS_ENOUGH * total else torch.float64
        if standing:
            W_hat = dense(cores)
            slope = _between(moments, W - W_hat)
            descent = _Descent(dense, cores, W_hat, standing, errors[-1], dtype, slope, caution)
        elif descent is None or descent.dtype != dtype:
            descent = _Descent(dense, cores, W, moments, errors[-1], dtype)
        tried = descent.go()
        error = metric.absolute(W - dense(tried))
        if error < errors[-1]:
            cores, gain = tried, 1 - error / errors[-1]
            errors.append(error)
            if gain < tolerance:
                break
        elif standing and caution < MOST_CAUTION:
            caution *= 4
        else:
            break
    return cores, errors


def evaluation_cost(W: torch.Tensor, metric: Metric) -> int:
    """Multiply-adds of G D C; a moment that is the identity or a diagonal costs nothing beside a dense one."""
    squares = [moment is not None and moment.ndim == 2 for moment in (metric.G, metric.C)]
    return sum(size * W.numel() for size, square in zip(W.shape, squares, strict=True) if square)


def stand_ins(moments: Sequence[torch.Tensor | None], factors: Sequence[Sequence[int]]) -> list[Moment] | None:
    """`Factored` moments in place of those for which they pay, or None where that is none of them."""
    found: list[Moment] = [
        Factored.of(moment, side)
        if moment is not None and not moment.is_sparse and Factored.pays(len(moment), side)
        else moment
        for moment, side in zip(moments, factors, strict=True)
    ]
    return found if any(isinstance(moment, Factored) for moment in found) else None


def _between(moments: Sequence[Moment], D: torch.Tensor) -> torch.Tensor:
    """G D C of the moments G and C; None is the identity."""
    G, C = moments
    D = D if G is None else G @ D
    return D if C is None else D @ C


class _Descent:
    """L-BFGS in one dtype on ⟨δ, 2 slope + s G δ C⟩, δ = origin − Ŵ, in units of the error at the start.

    With the origin W and no slope that is the error itself. Its memory lasts over rounds.
    """

    def __init__(
        self,
        dense: Dense,
        cores: Sequence[torch.Tensor],
        origin: torch.Tensor,
        moments: Sequence[Moment],
        unit: float,
        dtype: torch.dtype,
        slope: torch.Tensor | None = None,
        caution: float = 1.0,
    ) -> None:
        self.dense, self.dtype, self.scale = dense, dtype, caution / unit
        self.origin, self.moments = origin.to(dtype), [m if m is None else m.to(dtype) for m in moments]
        self.slope = None if slope is None else (slope / unit).to(dtype)
        self.cores = [core.to(dtype).clone(memory_format=torch.contiguous_format).requires_grad_() for core in cores]
        self.optimizer = torch.optim.LBFGS(
            self.cores,
            max_iter=EVALUATIONS,
            max_eval=EVALUATIONS,
            history_size=MEMORY,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

    def go(self) -> list[torch.Tensor]:
        """One round; the cores in float64."""
        self.optimizer.step(self._error)
        return [core.detach().double() for core in self.cores]

    def _error(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        with torch.enable_grad():
            W_hat = self.dense(self.cores)
        with torch.no_grad():
            delta = self.origin - W_hat
            slope = both = _between(self.moments, delta) * self.scale
            if self.slope is not None:
                slope, both = slope + self.slope, both + 2 * self.slope
        W_hat.backward(-2 * slope)
        return (delta * both).sum()
