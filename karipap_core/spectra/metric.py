"""The norm that an error of a weight is measured in (`Metric`), and the damped factors of its moments."""

import math
import warnings
from dataclasses import dataclass, field

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from karipap_core.errors import InputError, unknown
from karipap_core.spectra.spectrum import METRICS

LARGEST_DAMPING = 1e4  # past this the damped moment is a multiple of the identity: nothing left to raise

# The factor of a second moment, kept as long as its tensor lives: q, k and v are given the same C and share it.
_factors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def damped_factor(moment: torch.Tensor, damping: float, name: str = "C") -> tuple[torch.Tensor | None, float | None]:
    """Cholesky factor L of `moment` + λ·mean(diag)·1 = L Lᵀ and the λ it took (float64, lower triangular).

    λ starts at `damping` and is raised tenfold until the factorization succeeds. A moment that is all zeros or holds
    NaN or Inf says nothing about its weight: then (None, None), with a warning, and the identity stands in for it.
    The result is cached on the tensor. Raises InputError where `moment` is not a square matrix.
    """
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1]:
        raise InputError(f"Second moment {name} has shape {tuple(moment.shape)}: it must be a square matrix.")
    key = (damping, moment._version)
    kept = _factors.setdefault(moment, {})
    if key not in kept:
        kept.clear()
        kept[key] = _factor(moment.detach().double(), damping, name)
    return kept[key]


def _factor(moment: torch.Tensor, damping: float, name: str) -> tuple[torch.Tensor | None, float | None]:
    mean = moment.diagonal().mean().item()
    if not math.isfinite(mean) or mean <= 0 or not torch.isfinite(moment).all():
        warnings.warn(f"Second moment {name} is zero or not finite: the identity stands in for it.", stacklevel=4)
        return None, None
    while damping <= LARGEST_DAMPING:
        damped = (moment + moment.T).div_(2)
        damped.diagonal().add_(damping * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return factor, damping
        damping = max(damping * 10, 1e-12)
    warnings.warn(f"Second moment {name} is far from positive: the identity stands in for it.", stacklevel=4)
    return None, None


@dataclass(eq=False)
class Metric:
    """The norm that an error of the weight is measured in: ‖A (W − Ŵ) B‖², AᵀA = G + λ_G·1, B Bᵀ = C + λ_C·1.

    `C` (in, in) is the second moment of the inputs, `G` (out, out) that of the output gradients, both undamped; None
    stands for the identity. λ = `damping` · mean diagonal. **Every error here is measured with the damped moments**,
    the ones that `whiten` uses: so the tail of the spectrum of `whiten(W)` *is* the error of its truncation.
    B is the lower Cholesky factor of the damped C, Aᵀ that of the damped G; everything is float64 and computed on the
    device of the weight at hand. `rounds_under_G`: whether rounding to few bits makes errors good under G
    too, or under C alone. `name` is `weight` (C = G = None), `functional` (C) or `loss` (C and G).
    """

    name: str = "weight"
    C: torch.Tensor | None = None
    G: torch.Tensor | None = None
    damping: float = 0.01
    rounds_under_G: bool = True
    _moved: dict = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.name not in METRICS:
            raise unknown("Metric", self.name, METRICS)
        wanted = {"weight": (False, False), "functional": (True, False), "loss": (True, True)}[self.name]
        for side, moment, needed in zip("CG", (self.C, self.G), wanted, strict=True):
            if (moment is not None) != needed:
                raise InputError(f"Metric {self.name!r} {'needs' if needed else 'does not take'} the moment {side}.")
        if not 0 <= self.damping < math.inf:
            raise InputError(f"Damping {self.damping!r} must be zero or a positive number.")

    @property
    def damping_used(self) -> dict[str, float | None]:
        """λ of each side in units of its mean diagonal: more than `damping` where the moment was not positive with it,
        None where the side's moment says nothing (all zeros, NaN) and the identity stands in for it."""
        sides = {"C": self.C, "G": self.G}
        return {side: damped_factor(m, self.damping, side)[1] for side, m in sides.items() if m is not None}

    def factor(self, side: str, device: torch.device | str = "cpu") -> torch.Tensor | None:
        """Lower Cholesky factor of the damped C (`side` "C": B itself) or G (`side` "G": Aᵀ); None is the identity."""
        moment = self.C if side == "C" else self.G
        if moment is None:
            return None
        factor = damped_factor(moment, self.damping, side)[0]
        if factor is None or factor.device == torch.device(device):
            return factor
        key = (side, str(device))
        if key not in self._moved:
            self._moved[key] = factor.to(device)
        return self._moved[key]

    def damped(self, side: str, device: torch.device | str = "cpu") -> torch.Tensor | None:
        """C + λ_C·1 = B Bᵀ or G + λ_G·1 = AᵀA itself (float64); None is the identity."""
        moment = self.C if side == "C" else self.G
        if moment is None or (damping := self.damping_used[side]) is None:
            return None
        matrix = moment.to(device=device, dtype=torch.float64, copy=True)
        matrix = (matrix + matrix.T) / 2
        matrix.diagonal().add_(damping * matrix.diagonal().mean())
        return matrix

    def check(self, n_out: int, n_in: int) -> None:
        """Raises InputError where a moment's size is not the weight's."""
        for side, moment, size in (("C", self.C, n_in), ("G", self.G, n_out)):
            if moment is not None and tuple(moment.shape) != (size, size):
                raise InputError(f"Moment {side} is {tuple(moment.shape)}, the weight needs {(size, size)}.")

    def whiten(self, W: torch.Tensor) -> torch.Tensor:
        """A W B, (out, in), float64."""
        self.check(*W.shape)
        return self.whiten_right(self.whiten_left(W.detach().double()))

    def whiten_left(self, L: torch.Tensor) -> torch.Tensor:
        """A L, (out, n), float64 as L is."""
        G = self.factor("G", L.device)
        return L if G is None else G.T @ L

    def whiten_right(self, R: torch.Tensor) -> torch.Tensor:
        """R B, (n, in), float64 as R is."""
        C = self.factor("C", R.device)
        return R if C is None else R @ C

    def unwhiten_left(self, U: torch.Tensor) -> torch.Tensor:
        """A⁻¹ U by a triangular solve; U is (out, n) float64."""
        G = self.factor("G", U.device)
        return U if G is None else torch.linalg.solve_triangular(G.T, U, upper=True)

    def unwhiten_right(self, Vt: torch.Tensor) -> torch.Tensor:
        """Vt B⁻¹ by a triangular solve; Vt is (n, in) float64."""
        C = self.factor("C", Vt.device)
        return Vt if C is None else torch.linalg.solve_triangular(C, Vt, upper=False, left=False)

    def absolute(self, D: torch.Tensor) -> float:
        """‖A D B‖² of a difference D (out, in), with the damped moments."""
        return self.whiten(D).square().sum().item()

    def error(self, W: torch.Tensor, W_hat: torch.Tensor) -> float:
        """Relative metric error ‖A (W − Ŵ) B‖² / ‖A W B‖² with the damped moments (0 for a zero W met exactly)."""
        difference = self.absolute(W.detach().double() - W_hat.detach().double())
        return difference / self.absolute(W) if difference else 0.0
