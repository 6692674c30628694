"""The registry of networks: names, duplicates, the sentence for an unknown name, and that it imports no network."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from karipap_core.errors import InputError
from karipap_core.layers.linear import check_layer
from karipap_core.networks import EMBEDDING_NETWORKS, NETWORKS, listed, registry, spec_from_json
from karipap_core.networks.base import Spec
from karipap_core.networks.curve import even_levels
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.mpo import Mpo
from karipap_core.networks.registry import register
from tests.helpers.paths import REPOSITORY


@pytest.fixture
def empty(monkeypatch):
    monkeypatch.setattr(registry, "NETWORKS", {})
    monkeypatch.setattr(registry, "EMBEDDING_NETWORKS", {})


def test_the_registry_lists_the_networks_in_their_order():
    assert list(NETWORKS)[:6] == ["lowrank", "mpo", "qlr", "peps", "disentangled", "tree"]  # new ones come after them
    assert list(EMBEDDING_NETWORKS)[:2] == ["lowrank", "tt_embedding"]
    assert all(kind.network == name for name, kind in (NETWORKS | EMBEDDING_NETWORKS).items())


def test_register_is_a_decorator_with_options_or_a_call(empty):
    assert register(Mpo) is Mpo and register(embedding=True)(LowRank) is LowRank
    assert {"mpo": Mpo, "lowrank": LowRank} == registry.NETWORKS
    assert {"lowrank": LowRank} == registry.EMBEDDING_NETWORKS


def test_a_name_is_registered_once(empty):
    register(linear=False, embedding=True)(LowRank)
    with pytest.raises(ValueError, match="'lowrank' is registered already, by karipap_core.networks.lowrank"):
        register(LowRank)


def test_an_embedding_needs_rows(empty):
    with pytest.raises(ValueError, match="Mpo has no 'rows'"):
        register(Mpo, embedding=True)
    assert registry.NETWORKS == registry.EMBEDDING_NETWORKS == {}


def test_an_unknown_network_is_answered_with_the_nearest():
    from torch import nn, rand

    with pytest.raises(InputError, match=r"Field 'network' is 'mpoo'. .* not one of lowrank, .*Did you mean 'mpo'\?"):
        spec_from_json({"network": "mpoo", "out": [4], "in": [4], "chi": [1]})
    with pytest.raises(InputError, match="with 'structure': 'tt_embedding' is not one of"):
        spec_from_json({"network": "tt_embedding", "out": [4], "in": [2, 2], "chi": [1], "structure": {"head": 1}})
    for nothing in ({"network": ["mpo"]}, {"network": None}, {}, "mpo"):
        with pytest.raises(InputError, match="'network'"):
            spec_from_json(nothing)
    with pytest.raises(InputError, match=r"Network 'lowrnk' is not one of .*Did you mean 'lowrank'\?"):
        check_layer(nn.Linear(4, 4), rand(3, 4), [1], network="lowrnk")


def test_the_registry_imports_no_network_and_every_network_registers_itself():
    """So no circle goes through it, and a new network is its file and its line in `networks/listed.py`."""
    imported = {
        node.module
        for node in ast.walk(ast.parse(Path(registry.__file__).read_text()))
        if isinstance(node, ast.ImportFrom)
    }
    assert {name for name in imported if name.startswith("karipap_core.networks")} == {"karipap_core.networks.base"}
    for kind in {*NETWORKS.values(), *EMBEDDING_NETWORKS.values()}:
        assert "@register" in Path(__import__(kind.__module__, fromlist=["_"]).__file__).read_text()


def test_a_network_without_a_curve_of_its_own_is_fitted_at_even_levels():
    W = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    found, exact = Spec.curve.__func__(LowRank, W), LowRank.curve(W)
    assert list(found.chi) == even_levels(LowRank.for_shape(12, 20, 1).break_even_chi) and not found.exact
    assert list(found.parameters) == [32 * chi for chi in found.chi]
    assert found.error == pytest.approx([exact.at(chi) for chi in found.chi], rel=1e-9)
    assert found.total == pytest.approx(exact.total)


def test_names_are_known_without_loading_a_network_and_stand_in_the_order_of_the_registry():
    assert tuple(name for name, kind in NETWORKS.items() if kind.__module__.startswith("karipap_core")) == listed.NAMES
    code = "import sys; from karipap_core.networks.listed import NAMES; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_a_network_imported_on_its_own_does_not_come_first(monkeypatch):
    table = dict(reversed(NETWORKS.items()))
    monkeypatch.setattr(registry, "NETWORKS", table)
    registry.in_order([f"karipap_core.networks.{file}" for file in listed.FILES])
    assert tuple(table)[: len(listed.NAMES)] == listed.NAMES
