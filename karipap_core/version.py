"""The one version number, pyproject.toml's: of the checkout that this file is in, else of the installed distribution.

A checkout is asked first since the metadata of an editable install are those of the day on which it was made.
"""

import tomllib
from importlib.metadata import version
from pathlib import Path

DISTRIBUTION = "karipap"
CHECKOUT = Path(__file__).parents[1] / "pyproject.toml"


def _version() -> str:
    project = tomllib.loads(CHECKOUT.read_text("utf-8")).get("project", {}) if CHECKOUT.is_file() else {}
    return project["version"] if project.get("name") == DISTRIBUTION else version(DISTRIBUTION)


__version__ = _version()
