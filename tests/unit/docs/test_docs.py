"""The documents say where things are: what they name exists, and what the code cites of them exists too."""

import ast
import importlib
import re

import pytest

from tests.helpers.paths import REPOSITORY

DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
SOURCES = sorted(
    file
    for folder in ("karipap_core", "pages", "bench", "assets", "tests")
    for file in (REPOSITORY / folder).rglob("*.py")
    if "workspace" not in file.relative_to(REPOSITORY).parts[:1]
)
FOLDERS = "karipap_core|pages|tests|bench|assets|docs"
# `docs/methods.md, "Allocation" and "Prediction"`, perhaps over two lines of a docstring or comment
CITED = re.compile(r'docs/(\w+)\.md((?:,? (?:and )?"[^"\n]+")*)')


def headings(name: str) -> set[str]:
    return set(re.findall(r"^#+ (.+)$", (REPOSITORY / "docs" / f"{name}.md").read_text("utf-8"), re.MULTILINE))


def citations(text: str) -> list[tuple[str, list[str]]]:
    """(document, sections) of each citation in a source file."""
    joined = re.sub(r"[ \t]*\n[ \t]*(?:# ?)?", " ", text)
    return [(name, re.findall(r'"([^"]+)"', quoted)) for name, quoted in CITED.findall(joined)]


def test_a_citation_is_read_over_the_end_of_a_line():
    text = '# see docs/methods.md,\n# "Allocation" and "Prediction").\n'
    assert citations(text) == [("methods", ["Allocation", "Prediction"])]


def test_every_section_that_the_code_cites_is_there():
    wrong, found = [], 0
    for file in SOURCES:
        if file.name == "test_docs.py":
            continue
        for name, sections in citations(file.read_text("utf-8")):
            found += 1
            if not (REPOSITORY / "docs" / f"{name}.md").is_file():
                wrong.append(f"{file.relative_to(REPOSITORY)}: docs/{name}.md does not exist")
                continue
            wrong += [
                f"{file.relative_to(REPOSITORY)}: docs/{name}.md has no section {section!r}"
                for section in sections
                if section not in headings(name)
            ]
    assert not wrong
    assert found > 3  # the pattern finds what the code cites


def test_the_code_cites_no_document_that_is_not_here():
    known = {file.name for file in REPOSITORY.rglob("*.md") if ".venv" not in file.parts}
    wrong = {
        f"{file.relative_to(REPOSITORY)}: {name}"
        for file in SOURCES
        for name in re.findall(r"\b([A-Z]{3,}\.md)\b", file.read_text("utf-8"))
        if name not in known
    }
    assert not wrong


def test_the_files_that_the_code_names_are_here():
    known = ["app.py", *(str(file.relative_to(REPOSITORY)) for file in SOURCES)]
    wrong = []
    for file in SOURCES:
        if file.relative_to(REPOSITORY).parts[0] == "tests":  # they make up files
            continue
        for name in re.findall(r"(?<![\w./{-])((?:\w+/)*\w+\.py)\b", file.read_text("utf-8")):
            if not any(path == name or path.endswith(f"/{name}") for path in known):
                wrong.append(f"{file.relative_to(REPOSITORY)}: {name}")
    assert not wrong


def is_there(dotted: str) -> bool:
    """Whether `package.module.name` below karipap_core is a module, or a name that stands in its file."""
    folder, rest = REPOSITORY / "karipap_core", dotted.split(".")
    while rest and (folder / rest[0]).is_dir():
        folder = folder / rest.pop(0)
    file = folder / "__init__.py"
    if rest and (folder / f"{rest[0]}.py").is_file():
        file = folder / f"{rest.pop(0)}.py"
    return not rest or re.search(rf"\b{rest[0]}\b", file.read_text("utf-8")) is not None


def test_the_modules_that_anything_names_are_here():
    assert is_there("networks.mpo.Mpo") and not is_there("networks.mpo.Mpos") and not is_there("mpo")
    wrong = [
        f"{file.relative_to(REPOSITORY)}: karipap_core.{dotted}"
        for file in [*SOURCES, *DOCUMENTS]
        if file.name not in ("CHANGELOG.md", "test_docs.py")  # what was; what is made up
        for dotted in set(re.findall(r"\bkaripap_core\.((?!__)[\w.]*\w)", file.read_text("utf-8")))
        if not is_there(dotted)
    ]
    assert not wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_paths_named_in_a_document_exist(document):
    text = document.read_text("utf-8")
    named = set(re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*\w/?)", text))
    if document.name == "methods.md":  # says that its paths are below karipap_core/
        below = re.findall(r"`(\w+(?:/\w+)*(?:\.(?:py|json)|/))`", text)
        named |= {f"karipap_core/{path}" for path in below if path != "karipap_core/"}
        assert len(named) > 30
    missing = sorted(path for path in named if not (REPOSITORY / path).exists())
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_links_between_documents_lead_somewhere(document):
    text = document.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path) if path else document
        assert file.exists(), f"{document.name}: {target}"
        if anchor:
            known = {
                re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
                for heading in re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
            }
            assert anchor in known, f"{document.name}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_what_a_document_imports_is_there(document):
    for block in re.findall(r"^```python\n(.*?)^```$", document.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("karipap_core"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{document.name}: {node.module} has no {alias.name}"
