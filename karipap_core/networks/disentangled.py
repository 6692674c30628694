"""`disentangled`: an MPO between two circuits of orthogonal gates, W ≈ Q_L Ŵ Q_Rᵀ.

Ŵ is an `mpo` on digits of 16 at most where the shape allows. Q_L = G_1 G_2 … G_L acts on the digits of the rows, Q_R
likewise on those of the columns; a layer G_l is a brickwork of gates on neighbouring digits (a, b), pairs (1 2)(3 4) …
in odd layers and (2 3)(4 5) … in even ones. A gate is a rotation exp(K) of a·b dimensions, K skew; it is stored as
the ab(ab − 1)/2 numbers above K's diagonal. Without layers (L = 0) the network is `mpo` itself.

Aizpurua, Jahromi, Singh, Orús, arXiv:2410.17397; environments and polar updates: Evenbly, Vidal, PRB 79, 144108 (2009).
There one gate spans all digits of a side: the circuits are then the full U and V of the SVD and hold more numbers than
the weight. Here every angle is counted, and `veto` says before any run where it cannot pay.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch

from karipap_core.errors import InputError
from karipap_core.networks.base import Spec, factorize, outside_in, tails
from karipap_core.networks.curve import Curve
from karipap_core.networks.gates import (
    MULTIPLY_ADDS_OF_EXP,
    Circuit,
    Place,
    angles_of,
    around,
    brickwork,
    fewest_digits,
    gates_of,
    nearest_rotation,
    random_rotation,
    turn,
    turned,
)
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.mpo import Mpo, attainable, balance, squared_singular_values, to_sites
from karipap_core.networks.refine import ENOUGH, ROUNDS, refine
from karipap_core.networks.registry import register
from karipap_core.progress import Progress, silent
from karipap_core.spectra.metric import Metric

# Metric error over the SVD's at equal parameters, loss metric, kept .15 / .3 / .6, by layers: a query (256×256) of the
# demo model L = 0 .81 / 1.19 / 3.4, 1 .77 / 1.09 / 3.0, 2 .56 / .91 / 2.9, 4 .47 / .82 / 2.9; a value (128×256)
# .50 / 1.33 / 5.2, .37 / .94 / 3.5, .28 / .79 / 4.2, .22 / .58 / 3.2. Each layer pays, and doubles the fit's time.
# Digits of 4 at most, whose gates are small, at their best L up to 8 lost to the best of these on five of the six.
LAYERS = 2
SWEEPS = 24  # over all gates: a third for each restart, the rest for the best one
GAIN = 1e-3  # of the error: sweeps end where one gains less
EXACT = 1e-10  # of the total: what counts as no error in `veto`
RESTARTS = (3, 10, 2**18)  # at least, at most, and the entries of a weight times its restarts
SLOWNESS = 0.8  # rotations and cores together converge more slowly than an MPO's cores alone

Swept = tuple[list[torch.Tensor], Circuit, Circuit, float]  # the MPO's cores, both circuits, the squared error


@register
@dataclass(frozen=True)
class Disentangled(Spec):
    """JSON: the fields of an `mpo` and "layers": L, the layers of each circuit."""

    layers: int = LAYERS
    network: ClassVar[str] = "disentangled"

    def validate(self) -> None:
        if not isinstance(self.layers, int) or isinstance(self.layers, bool) or not 0 <= self.layers <= 64:
            raise InputError(f"Field 'layers' is {self.layers!r}: it must be a whole number from 0 to 64.")
        try:
            Mpo(self.out, self.in_, self.chi)
        except InputError as error:
            raise InputError(str(error).replace("'mpo'", "'disentangled'")) from None

    @classmethod
    def for_shape(
        cls,
        n_out: int,
        n_in: int,
        chi: int,
        out: Sequence[int] | None = None,
        in_: Sequence[int] | None = None,
        quantize: str | None = None,
        layers: int = LAYERS,
    ) -> Self:
        """Digits of `LARGEST_LEG` at most where the numbers have such divisors, on as few sites as that takes, three
        or more.

        A prime keeps its one large digit, and a digit larger than `LARGEST_LEG` or of 1 has no gates.
        """
        if not (out or in_):
            sites = max(3, fewest_digits(n_out), fewest_digits(n_in))
            out, in_ = outside_in(factorize(n_out, sites)), outside_in(factorize(n_in, sites), mirrored=True)
        mpo = Mpo.for_shape(n_out, n_in, chi, out, in_)
        return cls(mpo.out, mpo.in_, mpo.chi, quantize, layers)

    @cached_property
    def mpo(self) -> Mpo:
        """The network between the circuits."""
        return Mpo(self.out, self.in_, self.chi)

    @cached_property
    def places(self) -> tuple[list[list[Place]], list[list[Place]]]:
        """Gates of each layer of the left circuit and of the right one."""
        return brickwork(self.out, self.layers), brickwork(self.in_, self.layers)

    @property
    def gate_parameters(self) -> int:
        """Angles of both circuits."""
        return sum(place.angles for side in self.places for layer in side for place in layer)

    @property
    def core_shapes(self) -> list[tuple[int, ...]]:
        """The MPO's cores, then the angles of each layer that has gates: left circuit, right circuit."""
        layers = [layer for side in self.places for layer in side if layer]
        return self.mpo.core_shapes + [(sum(place.angles for place in layer),) for layer in layers]

    @property
    def max_chi(self) -> int:
        return max(attainable(self.out, self.in_))

    def circuits(self, cores: Sequence[torch.Tensor]) -> tuple[Circuit, Circuit]:
        """The gates (n, n) of both circuits from the cores' angles."""
        return self.gates(cores[len(self.out) :])

    def gates(self, angles: Sequence[torch.Tensor]) -> tuple[Circuit, Circuit]:
        """The gates (n, n) of both circuits from the angles of each layer that has gates."""
        flat = iter(angles)
        left, right = ([gates_of(layer, next(flat)) if layer else [] for layer in side] for side in self.places)
        return left, right

    def apply(self, x: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        """y = Q_L Ŵ Q_Rᵀ x: the gates act on x and y, digit pair by digit pair, and Ŵ as `Mpo.apply` does."""
        (left, right), (on_out, on_in) = self.circuits(cores), self.places
        batch = x.shape[:-1].numel()
        x = turn(x, batch, right, on_in, inverse=True)
        y = self.mpo.apply(x, cores[: len(self.out)])
        return turn(y, batch, left, on_out)

    def dense(self, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.between(self.mpo.dense(cores[: len(self.out)]), *self.circuits(cores))

    def between(self, M: torch.Tensor, left: Circuit, right: Circuit) -> torch.Tensor:
        """Q_L M Q_Rᵀ for M (n_out, n_in)."""
        return turn(turn(M, 1, left, self.places[0]), self.n_out, right, self.places[1])

    def undone(self, W: torch.Tensor, left: Circuit, right: Circuit) -> torch.Tensor:
        """Q_Lᵀ W Q_R: what the MPO has to be near to."""
        W = turn(W, 1, left, self.places[0], inverse=True)
        return turn(W, self.n_out, right, self.places[1], inverse=True)

    def multiply_adds(self, batch: int = 1) -> int:
        """The MPO's, a gate's n for each entry it turns, and the forming of each gate from its angles."""
        return self.mpo.multiply_adds(batch) + self._gate_multiply_adds(batch)

    def work(self, batch: int = 1) -> int:
        return self.mpo.work(batch) + self._gate_multiply_adds(batch)

    def work_to_form(self) -> int:
        return self.mpo.work_to_form() + self._gate_multiply_adds(max(self.n_out, self.n_in))

    def _gate_multiply_adds(self, batch: int) -> int:
        gates = 0
        for side, width in zip(self.places, (self.n_out, self.n_in), strict=True):
            for place in (place for layer in side for place in layer):
                gates += batch * width * place.size + MULTIPLY_ADDS_OF_EXP * place.size**3
        return gates

    def random_cores(self, seed: int | None = None, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        """The MPO's random cores, which keep the variance, and normal angles: rotations keep it too."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        angles = [torch.randn(shape, generator=generator, dtype=dtype) for shape in self.core_shapes[len(self.out) :]]
        return self.mpo.random_cores(seed, dtype) + [core / math.sqrt(max(1, core.numel())) for core in angles]

    def fit(self, W: torch.Tensor, metric: Metric, progress: Progress = silent) -> list[torch.Tensor]:
        """Sweeps of polar updates in the weight metric, then `refine` over cores and angles in the metric asked for.

        The start of `refine` is the better one of what the sweeps found and the MPO's own start between identity
        gates, so no fit is worse than that MPO's start.
        """
        if not self.gate_parameters:
            return self.mpo.fit(W, metric, progress)
        return self.balanced(refine(self.dense, self.start(W, metric), W, metric, progress=progress)[0])

    def start(
        self, W: torch.Tensor, metric: Metric, sweeps: int = SWEEPS, restarts: int | None = None
    ) -> list[torch.Tensor]:
        """Cores and angles from `disentangle`, or the plain MPO's start where the metric finds that one better."""
        plain = [*self.mpo.start(W), *(W.new_zeros(shape) for shape in self.core_shapes[len(self.out) :])]
        if not self.gate_parameters or metric.absolute(W - self.dense(plain)) <= ENOUGH * metric.absolute(W):
            return plain
        cores, left, right, _ = disentangle(self, W, sweeps, restarts)
        swept = [*cores, *(angles_of(layer) for side in (left, right) for layer in side if layer)]
        return min((plain, swept), key=lambda start: metric.absolute(W - self.dense(start)))

    def balanced(self, cores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [*balance(cores[: len(self.out)]), *cores[len(self.out) :]]

    @classmethod
    def curve(
        cls,
        W: torch.Tensor,
        metric: Metric | None = None,
        levels: Iterable[int] | None = None,
        out: Sequence[int] | None = None,
        in_: Sequence[int] | None = None,
        layers: int = LAYERS,
        **options: Any,
    ) -> Curve:
        """Estimated at `levels` (default: 6 up to break-even, even in √χ) from less work than `decompose` does."""
        metric, W = metric or Metric("weight"), W.detach().double()
        spec = cls.for_shape(W.shape[0], W.shape[1], 1, out, in_, layers=layers)
        angles: list[torch.Tensor] | None = None

        def error(at: "Disentangled") -> float:
            nonlocal angles  # those of the χ before are where the next one starts
            estimated, angles = estimated_error(at, W, metric, angles)
            return estimated

        return spec.curve_at(levels, W, metric, error)


def sweep_gates(
    A: torch.Tensor, B: torch.Tensor, batch: int, circuit: Circuit, places: Sequence[Sequence[Place]]
) -> Circuit:
    """One pass over the gates of Q that raises ⟨A, Q B⟩ with each: A, B of one shape, Q on the index after `batch`.

    A gate's environment is E = Σ Ã B̃ᵀ, Ã with the gates outside it undone, B̃ with those inside it done.
    """
    inner = [B]  # B with the gates from each on inwards done, the innermost first
    order = [(layer, k) for layer in range(len(circuit)) for k in range(len(circuit[layer]))]
    for layer, k in reversed(order):
        inner.append(turned(circuit[layer][k], around(inner[-1], batch, places[layer][k])))
    circuit = [list(layer) for layer in circuit]
    for step, (layer, k) in enumerate(order):
        place = places[layer][k]
        A, B = around(A, batch, place), around(inner[len(order) - 1 - step], batch, place)
        circuit[layer][k] = nearest_rotation(torch.einsum("pxq,pyq->xy", A, B))
        A = turned(circuit[layer][k].mT, A)
    return circuit


def sweep(spec: Disentangled, W: torch.Tensor, cores: list[torch.Tensor], left: Circuit, right: Circuit) -> Swept:
    """All gates once and then the MPO: (cores, left, right, ‖W − Q_L Ŵ Q_Rᵀ‖²), which never rises.

    Given Q the MPO is the TT-SVD of Q_Lᵀ W Q_R; on three sites and more that is near the best, not the best, so the
    cores before it stay where they are better.
    """
    M = spec.mpo.dense(cores)
    if any(left):
        target = turn(M, spec.n_out, right, spec.places[1])
        left = sweep_gates(W, target, 1, left, spec.places[0])
    seen = turn(W, 1, left, spec.places[0], inverse=True)
    if any(right):
        right = sweep_gates(seen, M, spec.n_out, right, spec.places[1])
    seen = turn(seen, spec.n_out, right, spec.places[1], inverse=True)
    fresh = spec.mpo.start(seen)
    options = [(candidate, (seen - spec.mpo.dense(candidate)).square().sum().item()) for candidate in (fresh, cores)]
    cores, error = min(options, key=lambda option: option[1])
    return cores, left, right, error


def disentangle(spec: Disentangled, W: torch.Tensor, sweeps: int = SWEEPS, restarts: int | None = None) -> Swept:
    """Cores, circuits and squared error after sweeps in the weight metric (W float64).

    The first of `restarts` starts has identity gates and is given its layers one at a time, the others have random
    rotations (fixed seeds; how many: `RESTARTS`). A third of `sweeps` goes to each, the rest to the one that is best
    by then.
    """
    least, most, work = RESTARTS
    restarts = restarts or max(least, min(most, work // W.numel()))
    share = max(1, sweeps // 3)
    best: Swept | None = None
    for seed in range(restarts):
        generator = torch.Generator().manual_seed(seed)
        left, right = (
            [
                [random_rotation(p.size, generator).to(W) if seed else torch.eye(p.size).to(W) for p in layer]
                for layer in side
            ]
            for side in spec.places
        )
        cores = spec.mpo.start(spec.undone(W, left, right))
        found: Swept = (cores, left, right, math.inf)
        for depth in [spec.layers] if seed else range(1, spec.layers + 1):
            found = _swept(spec, W, found, depth, max(1, share // (1 if seed else spec.layers)))
        if best is None or found[3] < best[3]:
            best = found
    assert best is not None  # there is one restart at least
    return _swept(spec, W, best, spec.layers, sweeps - share)


def _swept(spec: Disentangled, W: torch.Tensor, found: Swept, depth: int, sweeps: int) -> Swept:
    """At most `sweeps` sweeps over the first `depth` layers; those behind them are still identity gates."""
    part, total = replace(spec, layers=depth), W.square().sum().item()
    for _ in range(sweeps):
        cores, left, right, before = found
        cores, turned_left, turned_right, error = sweep(part, W, cores, left[:depth], right[:depth])
        found = cores, turned_left + left[depth:], turned_right + right[depth:], error
        if error > (1 - GAIN) * before or error <= ENOUGH * total:
            break
    return found


def estimated_error(
    spec: Disentangled, W: torch.Tensor, metric: Metric, angles: list[torch.Tensor] | None = None
) -> tuple[float, list[torch.Tensor]]:
    """The error that `fit` will reach and the angles found: few sweeps from one start, or the `angles` of the χ
    before, then two rounds of `refine`; what is still to gain falls like rounds^(−0.8)."""
    if angles is None:
        start = spec.start(W, metric, sweeps=SWEEPS // 3, restarts=1)
    else:
        start = [*spec.mpo.start(spec.undone(W, *spec.gates(angles))), *angles]
    cores, errors = refine(spec.dense, start, W, metric, rounds=2)
    angles = cores[len(spec.out) :]
    if len(errors) < 3:
        return errors[-1], angles
    gain = (errors[1] - errors[2]) / (1 - 2**-SLOWNESS)
    return max(errors[2] - gain * (2**-SLOWNESS - ROUNDS**-SLOWNESS), 0.3 * errors[2]), angles


# Before any run.


def veto(
    weight: torch.Tensor | tuple[int, int], spec: Disentangled, metric: Metric | None = None, gates: int | None = None
) -> str | None:
    """Why this network cannot pay, in a sentence with the numbers counted; None where only a fit can tell.

    weight : W, or its shape alone.  gates : angles of the circuits, default those of `spec` (a layout of another kind,
    as the published one of register-wide gates, may be asked about).
    No fit is done. Rotations leave W's singular values as they are, so whatever the gates, the error is at least the
    tail of the (whitened) spectrum behind `rank_bound`. The network cannot pay where `lowrank`, or the `mpo` without
    circuits by its bond spectra (Σ of discarded weights), reaches that least error with no more numbers, or where
    there are as many numbers as the weight has.
    """
    gates = spec.gate_parameters if gates is None else gates
    if not gates:
        return None
    shape = tuple(weight.shape if isinstance(weight, torch.Tensor) else weight)
    count, dense = spec.mpo.parameters + gates, math.prod(shape)
    counted = f"{spec.mpo.parameters:,} MPO parameters and {gates:,} circuit parameters are {count:,}"
    if count >= dense:
        return f"This cannot pay: {counted}, the weight itself has {dense:,}."
    if not isinstance(weight, torch.Tensor):
        return None
    metric, W = metric or Metric("weight"), weight.detach().double()
    curve = LowRank.curve(W, metric)
    enough = curve.at(rank_bound(spec)) + EXACT * curve.total
    rank = int(curve.chi[np.argmax(curve.error <= enough)])
    if (lowrank := rank * sum(shape)) <= count:
        return f"This cannot pay: {counted}, and 'lowrank' reaches the least error they can with {lowrank:,}."
    allowed = enough if metric.name == "weight" else EXACT * W.square().sum().item()
    plain = _plain_mpo(spec, W, allowed)
    if plain <= count:
        return f"This cannot pay: {counted}, and 'mpo' reaches the least error they can with {plain:,}."
    return None


def rank_bound(spec: Disentangled) -> int:
    """The most that the rank of Ŵ (n_out, n_in) can be, gates or not: the cheapest cut between the rows' legs and the
    columns', each core on one side of it; rotations of rows or columns do not change a rank."""
    with_rows = with_columns = 1
    for k, (o, i) in enumerate(zip(spec.out, spec.in_, strict=True)):
        chi = spec.chi[k - 1] if k else 1
        with_rows, with_columns = min(with_rows, with_columns * chi) * i, min(with_columns, with_rows * chi) * o
    return min(with_rows, with_columns)


def _plain_mpo(spec: Disentangled, W: torch.Tensor, allowed: float) -> int:
    """Parameters of the smallest `mpo` on these digits whose discarded weights sum to `allowed` at most."""
    tensor, discarded = to_sites(W, spec.out, spec.in_), []
    for cut in range(1, len(spec.out)):
        unfolded = tensor.reshape(math.prod(tensor.shape[:cut]), -1)
        discarded.append(tails(squared_singular_values(unfolded)))
    for chi in range(1, spec.max_chi):
        if sum(tail[chi - 1] for tail in discarded if chi <= len(tail)) <= allowed:
            return spec.mpo.with_chi(chi).parameters
    return spec.mpo.with_chi(spec.max_chi).parameters
