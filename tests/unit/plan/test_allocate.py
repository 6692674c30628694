"""Allocation against brute force and against the rules' own definitions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core.errors import InputError
from karipap_core.plan.allocate import allocate, by_entropy, options, uniform


def table(name: str, sigma, out: int, n_in: int):
    squares = np.sort(np.asarray(sigma, float) ** 2)[::-1]
    chi = np.arange(1, len(squares) + 1)
    tail = np.array([squares[c:].sum() for c in chi])
    return options(name, chi, chi * (out + n_in), tail, out * n_in)


@st.composite
def problems(draw):
    tables = []
    for index in range(draw(st.integers(1, 4))):
        out, n_in = draw(st.integers(3, 6)), draw(st.integers(3, 6))
        sigma = draw(st.lists(st.floats(0.01, 10), min_size=min(out, n_in), max_size=min(out, n_in)))
        tables.append(table(f"w{index}", sigma, out, n_in))
    least, most = sum(t.cost[0] for t in tables), sum(t.cost[-1] for t in tables)
    return tables, least + draw(st.floats(0, 1)) * (most - least)


def damage_and_cost(tables, chosen):
    damage = sum(float(t.damage[chosen[t.name]]) for t in tables)
    return damage, sum(float(t.cost[chosen[t.name]]) for t in tables)


@settings(max_examples=150, deadline=None)
@given(problems())
def test_within_budget_and_no_worse_than_the_best_plan_that_leaves_one_step_free(problem):
    tables, budget = problem
    damage, cost = damage_and_cost(tables, allocate(tables, budget))
    assert cost <= budget * (1 + 1e-9)
    # The relaxed optimum's gap is at most the largest single step: brute force with that much less to spend.
    step = max(float(np.diff(t.cost).max(initial=0)) for t in tables)
    every = itertools.product(*[range(len(t.cost)) for t in tables])
    plans = [damage_and_cost(tables, {t.name: i for t, i in zip(tables, p, strict=True)}) for p in every]
    reachable = [d for d, c in plans if c <= budget - step]
    assert damage <= min(reachable, default=np.inf) + 1e-9


@settings(max_examples=50, deadline=None)
@given(problems())
def test_more_budget_never_hurts(problem):
    tables, budget = problem
    most = sum(t.cost[-1] for t in tables)
    little, much = allocate(tables, budget), allocate(tables, (budget + most) / 2)
    step = max(float(np.diff(t.cost).max(initial=0)) for t in tables)
    if (most - budget) / 2 > step:
        assert damage_and_cost(tables, much)[0] <= damage_and_cost(tables, little)[0] + 1e-9


def test_many_weights_get_what_one_sort_of_marginal_damage_gives_them():
    """The relaxed problem's exact answer: take components σ² per parameter from the top until the budget is spent."""
    random = np.random.default_rng(0)
    shapes = [tuple(random.integers(60, 200, 2)) for _ in range(40)]
    sigmas = [random.exponential(1, min(s)) * random.lognormal() * np.arange(1, min(s) + 1) ** -0.5 for s in shapes]
    tables = [table(f"w{i}", g, *s) for i, (g, s) in enumerate(zip(sigmas, shapes, strict=True))]
    budget = 0.4 * sum(t.cost[-1] for t in tables)
    gains = [(s2 / sum(s), sum(s), s2) for g, s in zip(sigmas, shapes, strict=True) for s2 in np.sort(g**2)[::-1]]
    left, kept = budget, 0.0
    for _, cost, s2 in sorted(gains, reverse=True):
        if cost > left:
            break
        left, kept = left - cost, kept + s2
    reference = sum(float((g**2).sum()) for g in sigmas) - kept
    damage, cost = damage_and_cost(tables, allocate(tables, budget))
    # Leaving a weight dense, which the sort cannot, may only help.
    assert cost <= budget and damage <= reference * 1.001


def test_whole_budget_leaves_everything_dense():
    tables = [table("a", [3, 2, 1], 3, 5), table("b", [1, 1, 1], 4, 3)]
    chosen = allocate(tables, sum(t.cost[-1] for t in tables))
    assert all(t.chi[chosen[t.name]] == 0 for t in tables)


def test_the_budget_goes_where_it_helps():
    """Two equal shapes, one with all its weight in the first σ: the other gets the parameters."""
    tables = [table("steep", [10] + [0.01] * 19, 20, 20), table("flat", [1] * 20, 20, 20)]
    chosen = allocate(tables, 10 * 40)
    chis = {t.name: int(t.chi[chosen[t.name]]) for t in tables}
    assert chis["steep"] == 1 and chis["flat"] == 9


def test_locked_weights_keep_their_option_and_the_rest_pays():
    tables = [table("a", [5, 4, 3, 2, 1, 1], 6, 6), table("b", [5, 4, 3, 2, 1, 1], 6, 6)]
    free = allocate(tables, 48)
    locked = allocate(tables, 48, fixed={"a": 0})
    assert locked["a"] == 0 and locked["b"] > free["b"]


def test_too_small_a_budget_is_an_error_that_says_so():
    with pytest.raises(InputError, match="the least they can have is"):
        allocate([table("a", [1, 1, 1], 3, 3)], 5)
    with pytest.raises(InputError, match="the least they can have is"):
        uniform([table("a", [1, 1, 1], 3, 3)], 5)


@settings(max_examples=60, deadline=None)
@given(problems(), st.floats(0.3, 1))
def test_uniform_keeps_the_same_fraction_of_every_weight(problem, kept):
    tables, _ = problem
    budget = kept * sum(t.cost[-1] for t in tables)
    if budget < sum(t.cost[0] for t in tables):
        return
    chosen = uniform(tables, budget)
    assert damage_and_cost(tables, chosen)[1] <= budget * (1 + 1e-9)
    fractions = [t.cost[chosen[t.name]] / t.cost[-1] for t in tables]
    following = [t.cost[min(chosen[t.name] + 1, len(t.cost) - 1)] / t.cost[-1] for t in tables]
    # No weight could step up without passing the fraction that some weight could not have either.
    assert max(fractions) <= max(min(following), kept) * (1 + 1e-9) + 1e-12 or max(fractions) == 1


def test_entropy_rule_gives_chi_in_proportion_to_the_effective_rank():
    tables = [table("low", np.ones(40), 40, 40), table("high", np.ones(40), 40, 40)]
    chosen = by_entropy(tables, 24 * 80, {"low": np.log(5), "high": np.log(15)})
    chis = {t.name: int(t.chi[chosen[t.name]]) for t in tables}
    assert chis["high"] == pytest.approx(3 * chis["low"], abs=3)


def test_options_drop_what_costs_as_much_as_dense_and_never_rise():
    made = options("a", [1, 2, 3, 4], [10, 20, 30, 40], [5.0, 2.0, 3.0, 0.0], 30)
    assert made.chi.tolist() == [1, 2, 0] and made.damage.tolist() == [5.0, 2.0, 0.0]
