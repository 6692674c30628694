"""The Ising model: Onsager's integral against other exact formulas, and renormalization against both."""

import functools
import itertools
import json
import math

import numpy as np
import pytest
import torch

from karipap_core.cli import frame as cli
from karipap_core.errors import InputError
from karipap_core.networks.peps.trg import METHODS, contract
from karipap_core.studies import ising
from karipap_core.studies.ising import CRITICAL, exact, solve

both = pytest.mark.parametrize("method", METHODS)
run = functools.cache(solve)  # several tests look at one computation

# Relative errors of ln Z / N on 2³⁰ sites, as this project's notes on the method state them: T, method, χ.
PUBLISHED = {
    (CRITICAL, "trg", 8): 6.9e-5,
    (CRITICAL, "trg", 16): 4.6e-6,
    (CRITICAL, "trg", 24): 1.1e-6,
    (CRITICAL, "hotrg", 8): 1.4e-5,
    (CRITICAL, "hotrg", 16): 5.6e-7,
    (CRITICAL, "hotrg", 24): 1.0e-7,
    (2.0, "trg", 8): 3.5e-6,
    (2.0, "trg", 16): 6.0e-7,
    (2.0, "hotrg", 8): 1.1e-6,
    (2.0, "hotrg", 16): 1.3e-8,
    (2.5, "trg", 8): 5.3e-5,
    (2.5, "trg", 16): 8.6e-7,
    (2.5, "hotrg", 8): 2.9e-6,
    (2.5, "hotrg", 16): 3.9e-8,
}


# ---- the exact answer ---------------------------------------------------------------------------------------------


def test_onsagers_constants():
    catalan = 0.915965594177219015
    assert exact(CRITICAL) == pytest.approx(math.log(2) / 2 + 2 * catalan / math.pi, rel=1e-15)
    assert exact(CRITICAL) == pytest.approx(0.929695398342, abs=1e-12)
    assert exact(2.0) == pytest.approx(1.025792812695, abs=1e-12)
    assert exact(2.5) == pytest.approx(0.879363820775, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.8, 1.5, 2.0, 2.15, 2.4, 3.0, 10.0])
def test_onsagers_double_integral(temperature):
    """ln 2 + 1/(8π²) ∬ ln(cosh²2β − sinh 2β (cos a + cos b)): away from T_c equal steps converge exponentially."""
    beta, cosine = 1 / temperature, np.cos(2 * np.pi * np.arange(1024) / 1024)
    terms = np.log(math.cosh(2 * beta) ** 2 - math.sinh(2 * beta) * (cosine[:, None] + cosine))
    assert exact(temperature) == pytest.approx(math.log(2) + terms.mean() / 2, rel=1e-14)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.2, 2.26918, CRITICAL])
def test_duality(temperature):
    """Kramers and Wannier: ln Z/N (β) = ln Z/N (β*) + ln sinh 2β with sinh 2β sinh 2β* = 1."""
    dual = 2 / math.asinh(1 / math.sinh(2 / temperature))
    assert exact(temperature) == pytest.approx(exact(dual) + math.log(math.sinh(2 / temperature)), rel=1e-14)


def test_no_temperature_overflows():
    for temperature in (1e-290, 1e-6, 0.01):
        assert exact(temperature) == pytest.approx(2 / temperature, rel=1e-15)
    for temperature in (1e8, 1e300):
        assert exact(temperature) == pytest.approx(math.log(2), rel=1e-15)
    steps = [exact(t) for t in np.linspace(CRITICAL - 1e-6, CRITICAL + 1e-6, 101)]
    assert all(0 < a - b < 1e-7 for a, b in itertools.pairwise(steps))


# ---- finite lattices ----------------------------------------------------------------------------------------------


def kaufman(side: int, temperature: float) -> float:
    """ln Z of the finite torus (Kaufman, Phys. Rev. 76, 1232, 1949)."""
    k = 1 / temperature
    ratio = math.cosh(2 * k) ** 2 / math.sinh(2 * k)
    gamma = [math.acosh(ratio - math.cos(math.pi * r / side)) for r in range(1, 2 * side)]
    gamma = [2 * k + math.log(math.tanh(k)), *gamma]
    products = []
    for first, kind in itertools.product((1, 0), (math.cosh, math.sinh)):
        factors = [2 * kind(side * g / 2) for g in gamma[first::2]]
        sign = math.prod(math.copysign(1, f) for f in factors)
        products.append((sign, sum(math.log(abs(f)) for f in factors)))
    top = max(ln for _, ln in products)
    total = sum(sign * math.exp(ln - top) for sign, ln in products)
    return side**2 / 2 * math.log(2 * math.sinh(2 * k)) + top + math.log(total / 2)


@both
@pytest.mark.parametrize("temperature", [1.3, 2.4])
def test_every_configuration_of_sixteen_spins(method, temperature):
    spins = 1 - 2 * ((np.arange(1 << 16)[:, None] >> np.arange(16)) & 1).reshape(-1, 4, 4)
    bonds = sum((spins * np.roll(spins, 1, axis)).sum((1, 2)) for axis in (1, 2))
    known = np.log(np.exp(bonds / temperature).sum())
    tensor, scale = ising.boltzmann(temperature)
    assert contract(tensor, 16, 4, 4, method).ln_z + 16 * scale == pytest.approx(known, rel=1e-13)
    assert kaufman(4, temperature) == pytest.approx(known, rel=1e-13)


def test_against_quimb():
    import quimb.tensor as quimb

    known = quimb.TN2D_classical_ising_partition_function(4, 4, 1 / 2.1, cyclic=True).contract(all)
    tensor, scale = ising.boltzmann(2.1)
    assert contract(tensor, 16, 4, 4).ln_z + 16 * scale == pytest.approx(math.log(known), rel=1e-13)


@both
@pytest.mark.parametrize("temperature, side, within", [(2.0, 64, 1e-6), (CRITICAL, 16, 1e-5), (3.0, 64, 1e-6)])
def test_finite_tori(method, temperature, side, within):
    found = run(temperature, 16, method, side=side)
    assert found["ln_z_per_site"] == pytest.approx(kaufman(side, temperature) / side**2, rel=within)
    assert found["sites"] == side**2


# ---- the table ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature, method, chi", PUBLISHED)
def test_the_table_of_errors(temperature, method, chi):
    found = run(temperature, chi, method)
    assert found["sites"] == 2**30
    assert found["relative_error"] < 1.2 * PUBLISHED[temperature, method, chi]
    assert found["relative_error"] > PUBLISHED[temperature, method, chi] / 1.2  # better than the method would be odd


@both
@pytest.mark.parametrize(
    "temperature, chis", [(CRITICAL, (1, 2, 4, 8, 16)), (2.0, (1, 2, 8, 16)), (2.5, (1, 2, 8, 16))]
)
def test_errors_fall_with_chi(method, temperature, chis):
    errors = [run(temperature, chi, method)["relative_error"] for chi in chis]
    assert all(more > 1.5 * less for more, less in itertools.pairwise(errors))


@both
def test_a_cell_of_two_by_two_in_other_gauges(method):
    """Four different tensors that stand for one: each leg in a basis of its own, turned back on the other side."""
    tensor, scale = ising.boltzmann(CRITICAL)
    turn = [torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64))[0] for _ in range(8)]
    cell = [
        [torch.einsum("udlr,Uu,Dd,Ll,Rr->UDLR", tensor, *(turn[k] for k in legs)) for legs in row]
        for row in (((0, 1, 4, 5), (2, 3, 5, 4)), ((1, 0, 6, 7), (3, 2, 7, 6)))
    ]
    one = contract(tensor, 8, 2**15, 2**15, method).ln_z_per_site
    assert contract(cell, 8, 2**15, 2**15, method).ln_z_per_site == pytest.approx(one, rel=1e-7)
    assert abs(one + scale - exact(CRITICAL)) < 1e-4


@both
@pytest.mark.parametrize("temperature", [1e-290, 1e-3, 0.05, 0.5, 20.0, 1e8])
def test_far_from_the_transition(method, temperature):
    assert run(temperature, 4, method)["relative_error"] < 1e-9
    assert run(temperature, 1, method)["relative_error"] < 0.1


# ---- the flow -----------------------------------------------------------------------------------------------------


@both
def test_levels_at_the_critical_point_are_its_scaling_dimensions(method):
    """1/8 and 1 are put in nowhere: they come out of the renormalized tensors."""
    flow = {entry["block"]: entry["levels"] for entry in run(CRITICAL, 16, method)["flow"]}
    assert list(flow) == [2**k for k in range(15)]
    for block in (8, 16, 32):
        assert flow[block][0] == pytest.approx(ising.DIMENSIONS[0], abs=0.001)
        assert flow[block][1] == pytest.approx(ising.DIMENSIONS[1], abs=0.04)


@both
def test_levels_away_from_it(method):
    cold = [entry["levels"][0] for entry in run(2.0, 16, method)["flow"]]
    assert cold[7] < 1e-6 and cold[0] > 0.1  # two ordered states, one as likely as the other
    hot = run(2.5, 16, method)["flow"][4]
    correlation = 1 / (-math.log(math.tanh(1 / 2.5)) - 2 / 2.5)  # exact correlation length above T_c, in sites
    assert hot["levels"][0] == pytest.approx(hot["block"] / correlation / (2 * math.pi), rel=0.05)


# ---- the verb and its errors --------------------------------------------------------------------------------------


def test_the_verb_prints_the_document(capsys):
    assert cli.main(["ising", "--method", "hotrg", "--temperature", "2.5", "--chi", "8", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"ln_z_per_site", "exact", "relative_error", "seconds"} <= set(document)
    assert document["exact"] == exact(2.5) and document["relative_error"] < 3.5e-6
    assert cli.main(["ising", "--chi", "4"]) == 0
    table = capsys.readouterr().out
    assert "trg, χ 4, T 2.26919" in table and "0.929695398342" in table and "2.89e-04" in table


@pytest.mark.parametrize(
    "options, says",
    [
        (["--temperature", "0"], "temperature: 0.0 is not a number above 0"),
        (["--temperature", "-1"], "temperature: -1.0"),
        (["--temperature", "nan"], "temperature: nan"),
        (["--temperature", "inf"], "temperature: inf"),
        (["--method", "svd"], "method: 'svd'"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(options, says, capsys):
    assert cli.main(["ising", "--chi", "2", *options]) == cli.BAD_INPUT
    assert says in capsys.readouterr().err


def test_bad_arguments():
    for arguments in ((0, 4), ("2", 4), (True, 4), (2.0, 0), (2.0, 2.5)):
        with pytest.raises(InputError):
            solve(*arguments)
    with pytest.raises(InputError, match="powers of two"):
        solve(2.0, 4, side=6)
