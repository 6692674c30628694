"""One version number, and requirement files that agree with the ranges of pyproject.toml."""

import os
import re
import subprocess
import tomllib

from karipap_core.version import __version__
from tests.helpers.paths import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
RANGES = {}  # name → lowest version, of the dependencies and of every extra
for requirement in [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]:
    if not requirement.startswith("karipap"):
        name, lowest = requirement.split(">=")
        RANGES[name] = tuple(map(int, lowest.split(".")))


def pins(name: str) -> dict[str, tuple[int, ...]]:
    found = re.findall(r"^(\S+)==(\S+)$", (REPOSITORY / name).read_text(), re.MULTILINE)
    return {package: tuple(map(int, version.split("."))) for package, version in found}


def same(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two versions are one: 2.13 is 2.13.0."""
    length = max(len(one), len(other))
    return one + (0,) * (length - len(one)) == other + (0,) * (length - len(other))


def test_the_version_is_that_of_the_project():
    assert __version__ == PROJECT["version"]


def test_every_range_has_a_pin_inside_it():
    pinned = pins("requirements.txt") | pins("requirements-test.txt")
    assert pinned.keys() == RANGES.keys()
    assert {name for name, lowest in RANGES.items() if pinned[name] < lowest} == set()


def test_the_lowest_versions_are_those_of_the_ranges():
    lowest = pins("requirements-lowest.txt")
    extras = [each.split(">=")[0] for each in PROJECT["optional-dependencies"]["app"]]
    wanted = [*(each.split(">=")[0] for each in PROJECT["dependencies"]), *extras]
    assert set(wanted) <= lowest.keys()
    assert [name for name in wanted if not same(lowest[name], RANGES[name])] == []


def test_what_is_imported_stays_compiled_where_a_container_forbids_it(tmp_path):
    """Packages are installed uncompiled: without a kept .pyc, importing torch and transformers takes 20 s each time."""
    assert "--no-compile" in (REPOSITORY / ".ci" / "venv").read_text()
    say = "import sys; print(sys.dont_write_bytecode)"
    (tmp_path / "says.mk").write_text(f'include Makefile\nsays:\n\t@python3 -c "{say}"\n')
    forbids = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    make = ["make", "-s", "-f", tmp_path / "says.mk", "says"]
    said = subprocess.run(make, cwd=REPOSITORY, env=forbids, capture_output=True, text=True)
    assert said.stdout.strip() == "False", said.stderr
