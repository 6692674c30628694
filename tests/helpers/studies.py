"""A study of a small model, and texts of numbers to calibrate it on and to hold it against."""

from pathlib import Path

from karipap_core.plan.study import Study
from karipap_core.profiles.activations import CalibrationSettings
from karipap_core.text import Text
from karipap_core.workspace import Workspace
from tests.helpers.architectures import make

SETTINGS = CalibrationSettings(tokens=1024, window=32, probe_windows=4, check_windows=4)


def cubes(count: int) -> Text:
    return Text("cubes", tuple(f"the cube of {n} is {n**3}\n" for n in range(count)))


def squares(count: int) -> Text:
    return Text("squares", tuple(f"the square of {n} is {n * n}\n" for n in range(count)))


CALIBRATION = cubes(300)


def study_of(architecture: str, folder: Path, text: Text = CALIBRATION, **changes) -> Study:
    """A study of a random checkpoint, on the CPU, with a workspace of its own; both lie in `folder`."""
    model = make(architecture, folder / "model", **changes)
    return Study(model, text, SETTINGS, "cpu", Workspace(folder / "workspace"))
