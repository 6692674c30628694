"""The two-dimensional Ising model: a lattice whose exact answer is known, to hold the renormalization engine against.

Spins s = ±1 on a periodic square lattice, H = −Σ s s′ over nearest neighbours, Z = Σ exp(−H/T); temperature T in units
of J/k_B, so that the free energy per site is f = −T ln Z / N in units of J. Importing this needs no torch.
"""

import math
import time

from karipap_core.errors import InputError
from karipap_core.progress import Progress, silent

CRITICAL = 2 / math.log1p(math.sqrt(2))  # T_c = 2.269185…, where the spins order (Kramers and Wannier 1941)
SIDE = 1 << 15  # 2³⁰ sites: its ln Z / N is Onsager's limit to far below any truncation here
DIMENSIONS = (0.125, 1.0)  # of spin and energy at T_c, exact (conformal field theory with c = 1/2)


def exact(temperature: float) -> float:
    """ln Z per site of the infinite lattice (Onsager, Phys. Rev. 65, 117, 1944), to about 1e-15.

        ln(2 cosh 2β) + (1/π) ∫₀^{π/2} ln ½(1 + √(sin²t + ε² cos²t)) dt,   β = 1/T,   ε = |1 − sinh²2β| / cosh²2β

    This is the usual form with κ² = 1 − ε² and t measured from the angle where the root vanishes at T_c (ε = 0), so
    that no difference of near numbers is taken; tanh-sinh quadrature crowds its nodes there. Computed without overflow
    for any T. InputError for T ≤ 0.
    """
    beta = _beta(temperature)
    fading = math.exp(-2 * beta)  # 1/sinh 2β = 2e/(1 − e²) stays finite where sinh 2β does not
    small = 2 * fading / (1 - fading**2) if fading < math.sqrt(2) - 1 else math.sinh(2 * beta)  # at most 1
    epsilon = abs(1 - small**2) / (1 + small**2)

    def integrand(t: float) -> float:
        return math.log((1 + math.hypot(math.sin(t), epsilon * math.cos(t))) / 2)

    step, terms = 1 / 32, []
    for k in range(-128, 129):
        x = math.pi / 2 * math.sinh(k * step)
        t = math.pi / 2 / (1 + math.exp(-2 * x))  # from 0 to π/2, exact near 0
        slope = math.pi / 2 * math.pi / 4 * math.cosh(k * step) / math.cosh(x) ** 2
        terms.append(integrand(t) * slope)
    return 2 * beta + math.log1p(fading**2) + math.fsum(terms) * step / math.pi


def boltzmann(temperature: float, device: str = "cpu"):
    """(T, ln scale): the site tensor T[up, down, left, right] (2, 2, 2, 2), float64, with Z/N → e^scale per site.

    T = Σ_s W[s, u] W[s, d] W[s, l] W[s, r] with W Wᵀ = exp(β s s′) on every bond, W = [√cosh β, ±√sinh β]; taken times
    e^{−β/2}, and the scale 2β apart, so that no temperature overflows. InputError for T ≤ 0.
    """
    import torch

    beta = _beta(temperature)
    even, odd = math.sqrt((1 + math.exp(-2 * beta)) / 2), math.sqrt(-math.expm1(-2 * beta) / 2)
    half_bond = torch.tensor([[even, odd], [even, -odd]], dtype=torch.float64, device=device)
    return torch.einsum("su,sd,sl,sr->udlr", half_bond, half_bond, half_bond, half_bond), 2 * beta


def solve(
    temperature: float,
    chi: int,
    method: str = "trg",
    side: int = SIDE,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict:
    """ln Z per site by renormalization of side × side sites (a power of two), beside the exact one.

    The document of the verb `ising`: ln_z_per_site, exact (infinite lattice), relative_error = |ln_z_per_site − exact|
    / exact, seconds; discarded_weight, the largest of any step; and the flow, for each block of `block`² sites that has
    become one tensor the `levels` ln(λ₀/λ_i) / 2π of its transfer matrix. At T_c the levels settle on the scaling
    dimensions of the model (`DIMENSIONS`), below T_c the first goes to 0 (two ordered states), above all grow
    (Gu and Wen, PRB 80, 155131, 2009). InputError for T ≤ 0, χ < 1, an unknown method, a side that is no power of two.
    """
    from karipap_core.networks.peps.trg import finish, rounds
    from karipap_core.spectra.spectrum import pick_device

    tensor, scale = boltzmann(temperature, pick_device(device))
    known, began, flow = exact(temperature), time.perf_counter(), []
    total = max(1, side).bit_length() - 2
    for done, lattice in enumerate(rounds(tensor, chi, side, side, method)):
        progress(method, done, max(done, total))
        flow.append({"block": side // lattice.rows, "levels": _levels(lattice.cell[0][0])})
    found = finish(lattice)
    ln_z_per_site = scale + found.ln_z_per_site
    return {
        "method": method,
        "temperature": float(temperature),
        "chi": chi,
        "sites": found.sites,
        "ln_z_per_site": ln_z_per_site,
        "exact": known,
        "relative_error": abs(ln_z_per_site - known) / known,
        "seconds": time.perf_counter() - began,
        "discarded_weight": found.discarded_weight,
        "flow": flow,
    }


def _beta(temperature: float) -> float:
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not number or not 1e-300 < temperature < math.inf:
        raise InputError(f"temperature: {temperature!r} is not a number above 0 (in units of J/k_B, such as 2.269).")
    return 1 / temperature


def _levels(tensor, count: int = 3) -> list[float | None]:
    """The first `count` of ln(λ₀/λ_i) / 2π of a block closed to a ring, λ the eigenvalues of Σ_u T[u, u, l, r].

    None where there is no such eigenvalue, or none that rounding has left.
    """
    import torch

    sizes = torch.linalg.eigvals(torch.einsum("uulr->lr", tensor)).abs().sort(descending=True).values.tolist()
    levels = [math.log(sizes[0] / size) / (2 * math.pi) if size > 1e-14 * sizes[0] else None for size in sizes[1:]]
    return (levels + [None] * count)[:count]
