"""Pages opened on the model `tiny`, and all the words on them."""

from streamlit.testing.v1 import AppTest

from tests.helpers import app_page


def opened(page: str = "profile", **query) -> AppTest:
    app = AppTest.from_file(app_page.APP, default_timeout=30)
    if page != "profile":
        app.query_params["model"] = "tiny"
        app.run().switch_page(f"pages/{page}.py")
    for name, value in ({"model": "tiny"} | query).items():
        app.query_params[name] = value
    return app.run()


def words(app: AppTest) -> str:
    """All text on the page."""
    kinds = ("markdown", "caption", "info", "error", "warning", "success", "subheader", "title", "code")
    parts = [element.value for kind in kinds for element in getattr(app, kind)]
    return "\n".join([*parts, *(element.proto.body for element in app.get("html"))])


def sound(app: AppTest) -> AppTest:
    assert not app.exception
    assert not app.error, [error.value for error in app.error]
    return app
