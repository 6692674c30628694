"""Which package may import which: the list is docs/architecture.md, "Floors", and nothing else says it."""

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from tests.helpers.paths import REPOSITORY

ROOT = REPOSITORY / "karipap_core"
MOST_LINES = 400
GROUND = {"errors", "progress", "version", "terminal", "reading", "schemas", "workspace"}


@lru_cache(maxsize=1)
def floors() -> list[str]:
    """The packages from the ground up."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text("utf-8")
    block = re.search(r"^## Floors$.*?^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[1]
    return [name for line in block.splitlines() for name in re.split(r" {3,}", line)[0].split()]


@lru_cache(maxsize=1)
def modules() -> dict[str, Path]:
    """Module name → file, packages under their own name."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(REPOSITORY).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(file: Path) -> Iterator[str]:
    """Every module that a file names in an import statement, wherever in the file it stands."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import; write the whole name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules() else node.module


@lru_cache(maxsize=1)
def edges() -> dict[str, set[str]]:
    """Module → the modules of the core that it imports."""
    return {name: {other for other in imports(file) if other in modules()} for name, file in modules().items()}


def package(module: str) -> str:
    """The name on the list: "" for karipap_core itself."""
    return (module.split(".") + [""])[1]


def test_every_package_is_on_the_list_and_nothing_else_is():
    named = {package(module) for module in modules()} - {"", "__main__"}
    assert set(floors()) == named
    assert len(set(floors())) == len(floors())


def test_no_import_goes_up_a_floor():
    place = {name: number for number, name in enumerate(floors())}
    up = []
    for module, others in edges().items():
        if package(module) not in place:  # karipap_core itself and __main__ stand above all
            continue
        for other in others:
            if place.get(package(other), len(place)) > place[package(module)]:
                up.append(f"{module} imports {other}")
    assert not up


def test_no_two_files_import_each_other_and_there_is_no_circle():
    state: dict[str, int] = {}
    circles = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        state[module] = 1
        for other in sorted(edges()[module]):
            if state.get(other) == 1:
                circles.append(" → ".join([*path[path.index(other) :], other]))
            elif other not in state:
                visit(other, (*path, other))
        state[module] = 2

    for module in sorted(modules()):
        if module not in state:
            visit(module, (module,))
    assert not circles


def test_the_core_knows_nothing_of_the_dashboard():
    outside = {"streamlit", "pages", "app", "tests", "bench"}
    wrong = [
        f"{module} imports {other}"
        for module, file in modules().items()
        for other in imports(file)
        if other.split(".")[0] in outside
    ]
    assert not wrong


def test_jobs_uses_the_ground_and_the_workspace_alone():
    used = {package(other) for module, others in edges().items() if package(module) == "jobs" for other in others}
    assert used - {"jobs"} <= GROUND


def test_no_file_is_too_long_to_read():
    long = {
        str(file.relative_to(ROOT)): lines
        for file in modules().values()
        if (lines := len(file.read_text("utf-8").splitlines())) > MOST_LINES
    }
    assert not long
