"""The interpreters that have the engines of exports; without them tests say so and are skipped."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY


def engine_python(name: str, package: str) -> Path:
    """The Python of `.venv-NAME`, or the one that the variable KARIPAP_NAME_PYTHON names; skips where there is none or
    it does not have `package`."""
    variable, folder = f"KARIPAP_{name.upper()}_PYTHON", f".venv-{name}"
    python = Path(os.environ.get(variable) or REPOSITORY / folder / "bin" / "python").absolute()
    if not python.is_file():
        pytest.skip(f"no engines here: make engines installs {folder}, or set {variable}")
    if subprocess.run([python, "-I", "-c", f"import {package}"], capture_output=True, timeout=300).returncode:
        pytest.skip(f"{python} has no {package}")
    return python
