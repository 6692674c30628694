"""What the tests of pages share: a page opened through app.py by Streamlit's AppTest, and the words that are on it."""

import functools

import streamlit as st
from streamlit.components.v2 import manifest_scanner
from streamlit.runtime.pages_manager import PagesManager
from streamlit.testing.v1 import AppTest

from pages.parts import model
from tests.helpers.paths import REPOSITORY

APP = str(REPOSITORY / "app.py")
# Which installed packages bring components: a server asks once, AppTest in each run, of all packages that are here.
components = functools.cache(manifest_scanner.scan_component_manifests)


def through_app(monkeypatch) -> None:
    """Lets runs go through app.py, as on any server that has drawn a page: AppTest forgets before each run that
    `st.navigation` was called, and would start pages on their own. What a server asks once is asked once here too."""

    class Pages(PagesManager):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            PagesManager.uses_pages_directory = False

    monkeypatch.setattr("streamlit.testing.v1.app_test.PagesManager", Pages)
    monkeypatch.setattr(manifest_scanner, "scan_component_manifests", components)


def alone_with(monkeypatch, roots) -> None:
    """Pages find the models of this folder, and nothing is remembered of earlier tests."""
    monkeypatch.setenv("KARIPAP_MODEL_ROOTS", str(roots))
    model.found.clear()
    st.cache_resource.clear()
    st.cache_data.clear()


def opened_on_tiny(page: str, timeout: int, query: dict) -> AppTest:
    """A page on the model `tiny` with these query parameters; nothing on it may have failed."""
    app = at(page, timeout, query)
    assert not app.exception and not app.error, [error.value for error in app.error]
    return app


def at(page: str, timeout: int, query: dict) -> AppTest:
    """A page on the model `tiny` with these query parameters."""
    app = AppTest.from_file(APP, default_timeout=timeout)
    app.query_params["model"] = "tiny"
    app.run().switch_page(page)
    for name, value in ({"model": "tiny"} | query).items():
        app.query_params[name] = value
    return app.run()


def words(app: AppTest, kinds: tuple[str, ...] = ("markdown",)) -> str:
    """The text of these kinds of elements and of all HTML."""
    parts = [each.value for kind in kinds for each in getattr(app, kind)]
    return "\n".join([*parts, *(each.proto.body for each in app.get("html"))])
