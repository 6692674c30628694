"""Every way by which a page takes what somebody typed, uploaded or wrote into an address, and how each is held.

The lists are whole: a new box, or a new read of the address, fails here until it is put down with what holds it. What
becomes a path goes through `roots.confine`, a list of what was found, or a pattern for names.
"""

import ast

import pytest

from tests.helpers.opened import opened
from tests.helpers.paths import REPOSITORY

TYPED = {"text_input", "text_area", "chat_input", "file_uploader", "camera_input", "audio_input", "data_editor"}
PATH = "a path: roots.confine"
BOXES = {
    ("pages/heal.py", "heal_folder"): PATH,
    (
        "pages/checklist.py",
        "prompts",
    ): "lines of text, of bounded number and length, stored under the sum of what they say",
    ("pages/parts/curve.py", "sweep_budgets"): "numbers",
    (
        "pages/parts/opening.py",
        None,
    ): "a path, looked at within the roots alone; a config.json or a profile, held to schemas, stored under its sum: "
    "see test_opening.py",
    ("pages/parts/deploy_controls.py", None): "a config.json, parsed within limits",
    ("pages/parts/plan_jobs.py", "board_file"): "a plan, parsed strictly",
    ("pages/run.py", "plan_file"): "a plan, parsed strictly",
    ("pages/parts/naming.py", None): "a name, made one that files can have: names.clean",
    (
        "pages/parts/texts.py",
        None,
    ): "a path, of a text or of a folder of images: roots.confine; a text, stored under a name of its letters, digits "
    "and sum; "
    "a data set by the pattern of its parts; a field, only looked for",
    ("pages/parts/plan_side.py", None): "χ and locks of listed weights",
}
# Functions that read the address, and what holds what they read.
ADDRESSES = {
    ("pages/parts/common.py", "setting"): "a list of options",
    ("pages/parts/common.py", "missing"): "only ever shown, as text",
    ("pages/parts/common.py", "share"): "compared",
    ("pages/parts/deploy_controls.py", "number"): "a whole number in range",
    ("pages/parts/job.py", "followed"): "a pattern for ids of jobs",
    ("pages/parts/model.py", "bar"): "an alias: a list of folders found, or the pattern of a hub id",
    ("pages/parts/plan_session.py", "opened"): "names of plans and drafts, by their patterns",
    ("pages/parts/plan_session.py", "begin"): "lists of options, and a number",
    ("pages/parts/plan_session.py", "remember"): "compared",
    ("pages/parts/plan_side.py", "selected_row"): "a list of weights",
    ("pages/profile.py", "selected"): "a list of weights",
    ("pages/run.py", "new_run"): "a list of plans",
    ("pages/run.py", "past"): "a list of runs",
    ("pages/sensitivity.py", "in_view"): "a list of weights",
    ("pages/tradeoff.py", "same_conditions"): "a list of points",
    ("pages/tradeoff.py", "selected"): "a list of points",
}


def walk():
    """(file, function around it, node) of everything in the pages."""
    for file in sorted([REPOSITORY / "app.py", *(REPOSITORY / "pages").rglob("*.py")]):
        name = str(file.relative_to(REPOSITORY))
        for part in ast.parse(file.read_text("utf-8")).body:
            for node in ast.walk(part):
                yield name, getattr(part, "name", ""), node


def key_of(call: ast.Call) -> str | None:
    value = next((keyword.value for keyword in call.keywords if keyword.arg == "key"), None)
    return value.value if isinstance(value, ast.Constant) else None


def test_every_box_is_in_the_list():
    found = {
        (file, key_of(node))
        for file, _, node in walk()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TYPED
    }
    assert found == BOXES.keys()


def reads(node: ast.AST) -> bool:
    """Whether `st.query_params` is read here: all uses but those that write or drop a parameter."""
    return isinstance(node, ast.Attribute) and node.attr == "query_params"


def place(file: str, node: ast.AST) -> tuple[str, int, int]:
    return file, node.lineno, node.col_offset


def test_every_read_of_the_address_is_in_the_list():
    writes, uses = set(), set()
    for file, _, node in walk():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("pop", "update"):
            writes |= {place(file, node.func.value)} if reads(node.func.value) else set()
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)) and reads(node.value):
            writes.add(place(file, node.value))
    for file, function, node in walk():
        if reads(node) and place(file, node) not in writes:
            uses.add((file, function))
    assert uses == ADDRESSES.keys()


def test_every_box_that_takes_a_path_refuses_what_is_outside(profiled, started):
    paths = [(file, key) for (file, key), how in BOXES.items() if how == PATH]
    assert paths
    for file, key in paths:
        app = opened(file.removeprefix("pages/").removesuffix(".py"))
        for path in ("/etc", "/", "../..", "~root"):
            app.text_input(key=key).input(path).run()
            said = "This path is not inside the folders of KARIPAP_MODEL_ROOTS."
            assert [error.value.replace("\\", "") for error in app.error] == [said]
    assert started == []


@pytest.mark.parametrize("value", ["/etc/passwd", "../../etc/passwd", "a\0b", "x" * 3000])
@pytest.mark.parametrize("page", ["plan", "run", "heal", "checklist", "tradeoff"])
def test_no_address_opens_a_path(profiled, started, page, value):
    names = ("model_", "plan", "draft", "folder", "heal_from", "run", "point", "job", "weight", "profile", "a", "b")
    app = opened(page, **dict.fromkeys(names, value))
    assert not app.exception and started == []
    assert not any("root:" in str(element) for element in (*app.markdown, *app.code, *app.error))
