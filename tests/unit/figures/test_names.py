"""The names that karipap_core.figures gives, and when they are loaded."""

import subprocess
import sys
from types import ModuleType

import pytest

from karipap_core import figures
from tests.helpers import made_up
from tests.helpers.paths import REPOSITORY


def test_every_name_is_there_and_none_hides_a_module():
    for name in figures.__all__:
        assert callable(getattr(figures, name)) and not isinstance(getattr(figures, name), ModuleType), name
        assert name in dir(figures) and getattr(figures, name).__doc__, name
        assert not (REPOSITORY / "karipap_core" / "figures" / f"{name}.py").exists(), name
    with pytest.raises(AttributeError, match="no attribute 'heat_map'"):
        getattr(figures, "heat_" + "map")


def test_nothing_is_loaded_before_it_is_asked_for():
    code = "import sys; from karipap_core import figures; before = 'plotly' in sys.modules; figures.heatmap\n"
    code += "print(before, 'plotly' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_notebook_draws_a_profile():
    profile = made_up.profile(2)
    assert [trace.type for trace in figures.heatmap(profile, "excess").data[:2]] == ["heatmap", "scatter"]
    assert figures.spectrum(profile, profile.weights[1]["name"]).data
