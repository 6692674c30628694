"""What a URL says is a stranger's: no value of any parameter breaks a page."""

import ast
import random

import pytest
from streamlit.testing.v1 import AppTest

from app import PAGES
from tests.helpers.app_page import APP, words
from tests.helpers.paths import REPOSITORY

VALUES = (
    *(
        "",
        " ",
        "\0",
        "0",
        "-1",
        "1e999",
        "nan",
        "inf",
        "9" * 5000,
        "٣",
        "²",
        "1_000",
        "0x10",
        "true",
        "None",
        "[]",
        "{}",
    ),
    *("../../etc/passwd", "/dev/zero", "file:///etc/hosts", "//host/share", "-rf", "a" * 5000, "<script>1</script>"),
    *("${x}", "{{x}}", "%s", "a\nb", "a;b", "a,b,,", ",", ":", "=", "1,2", "1:2", "lowrank", "int4", "weight", "loss"),
)
READERS = ("setting", "choose", "share", "number", "get")  # common.setting, …, st.query_params.get
SESSIONS = 1
NAMES = [name for pages in PAGES.values() for name, *_ in pages]


def parameters() -> list[str]:
    """Every word in the pages' code that could be the name of a parameter: one given to a function that reads them."""
    found = set()
    for file in [REPOSITORY / "app.py", *(REPOSITORY / "pages").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                words = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
                found |= set(words) if called in READERS else set()
    return sorted(name for name in found if name.isidentifier() and name != "model")


@pytest.mark.parametrize("page", NAMES)
def test_no_value_of_a_parameter_breaks_a_page(page, profiled):
    names = parameters()
    assert {"weight", "point", "metric", "draft"} <= set(names)
    generator = random.Random(page)
    for _ in range(SESSIONS):
        app = AppTest.from_file(APP, default_timeout=60)
        app.query_params["model"] = "tiny"
        app.switch_page(f"pages/{page}.py")
        for name in names:
            app.query_params[name] = generator.choice(VALUES)
        app.run()
        assert not app.exception, [(one.message, one.stack_trace) for one in app.exception]
        assert not [one.value for one in app.error if one.value.startswith("Something went wrong")]
        assert "10,776 parameters" in words(app) or page == "physics", "the URL was not read"
