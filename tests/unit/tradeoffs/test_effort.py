"""What a sweep is said to take, against the baselines and networks that it goes through."""

from types import SimpleNamespace

import pytest

from karipap_core.networks import NETWORKS
from karipap_core.tradeoffs import baselines, effort
from karipap_core.tradeoffs.sweep import every


@pytest.mark.parametrize(
    ("networks", "rules", "budgets"), [(["lowrank"], 1, 6), (["mpo", "tree"], 2, 3), (["all", "mpo"], 1, 1)]
)
def test_as_many_models_as_the_sweep_measures(monkeypatch, networks, rules, budgets):
    monkeypatch.setattr(baselines, "svd_baselines", lambda *given: [given])  # each can be met
    plans, rivals = effort.models(networks, rules, budgets)
    assert plans == len(every(networks)) * rules * budgets
    assert rivals == len(baselines.baselines(SimpleNamespace(), [0.5] * budgets, "model"))
    assert set(effort.NAMES) == set(NETWORKS), "all of them, and no other"


def test_the_time_of_one_is_the_middle_one_of_those_that_say_it():
    runs = [{"seconds": {"plan": 1, "measure": 9}}, {"seconds": {"measure": 30, "compress": None}}, {}]
    runs += [{"seconds": {"plan": 0, "measure": 0}}, {"seconds": {"measure": 100}}]
    assert effort.seconds_each(runs) == 30
    assert effort.seconds_each([{}]) is None
