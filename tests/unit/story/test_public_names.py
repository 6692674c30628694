"""The public names: loaded when first used, known to editors and type checkers, and quick to start from."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import karipap_core as kp

NAMES = [
    "open_checkpoint",
    "profile",
    "make_plan",
    "compress",
    "evaluate",
    "tradeoff",
    "autopilot",
    "heal",
    "verify",
    "densify",
    "Checkpoint",
    "Profile",
    "Plan",
    "Budget",
    "Study",
    "Text",
    "NETWORKS",
    "Spec",
    "Metric",
    "TensorNetworkLinear",
    "check_layer",
    "InputError",
    "Cancelled",
    "__version__",
]


def in_a_process(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


def test_every_public_name_is_there():
    assert sorted(kp.__all__) == sorted(NAMES)
    assert [name for name in NAMES if getattr(kp, name, None) is None] == []
    assert set(NAMES) <= set(dir(kp))


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'decompress'"):
        kp.decompress  # noqa: B018 (the access is what is tested)


def test_what_type_checkers_see_is_what_is_loaded():
    """The imports below TYPE_CHECKING, name by name, are those that `__getattr__` makes."""
    tree = ast.parse(Path(kp.__file__).read_text())
    block = next(
        node for node in tree.body if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    )
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"karipap_core.{module}" for name, module in kp._HOME.items()}


def test_importing_loads_nothing_that_takes_long():
    program = """
import sys
before = set(sys.modules)
import karipap_core
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))"""
    assert in_a_process(program) == "['karipap_core']"


def test_names_that_need_no_torch_load_none():
    program = """
import sys
import karipap_core as kp
kp.Budget(kept=0.5), kp.InputError, kp.__version__, kp.Plan, kp.Text
print("torch" in sys.modules)"""
    assert in_a_process(program) == "False"
