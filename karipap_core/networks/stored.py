"""The cores of a network in their stored formats, calibrated: each rounded with the second moments of what flows into
it, the others refitted to what it has become before the next one is.

A network that knows a better way says so (`Spec.calibrated`). For any other, H of a core, the moment that its errors
are made good under, is the Gauss-Newton block of its columns, estimated with random probes through autograd, and the
refit is a few rounds of L-BFGS (refine.py).
"""

import math
from collections.abc import Sequence

import torch

from karipap_core.errors import InputError, unknown
from karipap_core.networks.base import Spec
from karipap_core.networks.refine import refine
from karipap_core.quantization.formats import Format, Stored, StoredMatrix
from karipap_core.quantization.rounding import Columns
from karipap_core.spectra.metric import Metric

PROBES, MOST_PROBES = 32, 256
MOST_COLUMNS = 1024
REFIT_ROUNDS = 2
METHODS = ("gptq", "rtn")
PROBED_DAMPING = 0.01  # of an estimated H


@torch.no_grad()
def quantize_cores(
    spec: Spec,
    cores: Sequence[torch.Tensor],
    W: torch.Tensor,
    metric: Metric | None = None,
    method: str = "gptq",
    whitened: torch.Tensor | None = None,
) -> list[Stored]:
    """`cores` (float, as `spec.decompose` gives them) in `spec.formats`; W (out, in) is what they stand for, and what
    is refitted to: of cores that were trained since, `spec.dense(cores)`.

    A `StoredMatrix` for each core with a format, viewed as `spec.core_matrix`; the other cores as tensors, in
    float32 where they were refitted, integer ones as they are. method "rtn" only rounds to nearest; "gptq" is the
    better of both in `metric` (default: weight): never worse than rounding. Cores shared by a group (`spec.members`)
    are rounded to nearest: no single member may refit what the others use. A core that is on the grid of its format
    already (it was dequantized from it) comes back as it was. whitened : A W B in the metric, where that is known.
    Arithmetic in float64, on W's device.
    Raises InputError for an unknown method or cores of other shapes than the spec's.
    """
    if method not in METHODS:
        raise unknown("Method", method, METHODS)
    if [tuple(core.shape) for core in cores] != [tuple(shape) for shape in spec.core_shapes]:
        raise InputError(f"Cores are {[tuple(c.shape) for c in cores]}, the spec says {spec.core_shapes}.")
    metric, W = metric or Metric("weight"), W.detach().double()
    cores = [core.detach().to(W.device) for core in cores]
    rounded = rounded_cores(spec, cores)
    calibrate = any(form not in (None, "index") and Format.parse(form).calibrates for form in spec.formats)
    if method == "rtn" or spec.members or not calibrate or _same(spec, rounded, cores):
        return rounded
    own = spec.calibrated(cores, W, metric)
    calibrated = _generic(spec, cores, W, metric) if own is None else list(own)
    tries = [values(spec, stored, torch.float64) for stored in (calibrated, rounded)]
    better, plain = spec.errors(tries, W, metric, whitened)
    return calibrated if better <= plain else rounded


def values(spec: Spec, stored: Sequence[Stored], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The cores that `stored` (of `quantize_cores`) stands for, in the spec's shapes; integer cores stay integers."""
    cores = []
    for shape, core in zip(spec.core_shapes, stored, strict=True):
        tensor = core if isinstance(core, torch.Tensor) else core.dense()
        cores.append((tensor.to(dtype) if tensor.is_floating_point() else tensor).reshape(shape))
    return cores


def in_dtype(spec: Spec, stored: Sequence[Stored], plain: torch.dtype) -> list[Stored]:
    """The same cores, those without a format in a dtype of floats."""
    return [
        core.to(plain) if form is None and isinstance(core, torch.Tensor) else core
        for core, form in zip(stored, spec.formats, strict=True)
    ]


def _same(spec: Spec, stored: Sequence[Stored], cores: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b.to(a.dtype)) for a, b in zip(values(spec, stored), cores, strict=True))


def rounded_cores(spec: Spec, cores: Sequence[torch.Tensor]) -> list[Stored]:
    """Each core rounded to the nearest numbers of its format; those without one, and integers, as they are."""
    found: list[Stored] = []
    for index, (core, form) in enumerate(zip(cores, spec.formats, strict=True)):
        plain = form is None or form == "index"
        found.append(core if plain else Format.parse(form).rounded(core.reshape(spec.core_matrix(index))))
    return found


def _generic(spec: Spec, cores: list[torch.Tensor], W: torch.Tensor, metric: Metric) -> list[Stored]:
    """Cores from the last to the first (the input side of a weight comes last); what is still float is refitted."""
    current = [core.double() if core.is_floating_point() else core for core in cores]
    stored: dict[int, StoredMatrix] = {}
    free = [index for index, core in enumerate(cores) if core.is_floating_point()]
    for index in list(reversed(free)):
        if (form := spec.formats[index]) is None:
            continue
        H = column_moment(spec, current, index, metric)
        matrix = current[index].reshape(spec.core_matrix(index))
        stored[index] = Format.parse(form).calibrated(matrix, Columns.of(H, PROBED_DAMPING))
        current[index] = stored[index].dense().double().reshape(spec.core_shapes[index])
        free.remove(index)
        if free:
            fixed = list(current)

            def dense(moving, free=tuple(free), fixed=fixed):
                every = [core.to(moving[0].dtype) if core.is_floating_point() else core for core in fixed]
                for position, core in zip(free, moving, strict=True):
                    every[position] = core
                return spec.dense(every)

            moved, _ = refine(dense, [current[k] for k in free], W, metric, rounds=REFIT_ROUNDS)
            for position, core in zip(free, moved, strict=True):
                current[position] = core
    plain = [core.float() if core.is_floating_point() else core for core in current]
    return [stored.get(index, core) for index, core in enumerate(plain)]


def _run(spec: Spec, index: int) -> int:
    """Entries of the run of a core's trailing legs that errors are made good in."""
    shape, columns = list(spec.core_shapes[index]), spec.core_matrix(index)[1]
    total = math.prod(shape)
    legs = [shape.pop()]
    while shape and math.prod(legs) < columns:
        legs.insert(0, shape.pop())
    while len(legs) > 1 and (math.prod(legs) > MOST_COLUMNS or math.prod(legs) == total):
        legs.pop(0)
    return math.prod(legs)


def column_moment(
    spec: Spec, cores: Sequence[torch.Tensor], index: int, metric: Metric, probes: int | None = None, seed: int = 0
) -> torch.Tensor:
    """H (columns, columns) of one core, float64: E[J_zᵀ J_z], J_z (rows, columns) the gradient of ⟨Z, A Ŵ B⟩ with
    respect to the core, Z of independent standard normal entries. Columns are the trailing legs of the core's quantized
    rows, as many as have `MOST_COLUMNS` entries or fewer and leave more than one row.

    It is the Gauss-Newton Hessian of ‖A (W − Ŵ) B‖² / 2 in the columns, summed over rows: what GPTQ needs when rows are
    rounded independently. For `lowrank` it is tr(Lᵀ G L) · C for R and tr(G) · R C Rᵀ for L. Averaged over `probes`
    draws of Z (default: enough to fill H four times over, `PROBES` at least).
    """
    cores = [core.detach().double() if core.is_floating_point() else core for core in cores]
    cores[index].requires_grad_()
    with torch.enable_grad():
        W_hat = spec.dense(cores)
    device = W_hat.device
    G, C = metric.factor("G", device), metric.factor("C", device)
    generator = torch.Generator().manual_seed(seed)
    columns = _run(spec, index)
    rows = cores[index].numel() // columns
    probes = probes or min(max(PROBES, -(-4 * columns // rows)), MOST_PROBES)
    H = torch.zeros(columns, columns, dtype=torch.float64, device=device)
    for _ in range(probes):
        Z = torch.randn(W_hat.shape, generator=generator, dtype=torch.float64).to(device)
        Z = Z if G is None else G @ Z  # Aᵀ Z Bᵀ
        Z = Z if C is None else Z @ C.T
        (gradient,) = torch.autograd.grad(W_hat, cores[index], Z, retain_graph=True)
        gradient = gradient.reshape(rows, columns)
        H += gradient.T @ gradient
    return H / probes
