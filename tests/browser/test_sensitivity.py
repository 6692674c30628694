"""The Sensitivity page in a real browser: a measurement started, watched, and read by clicks on its map."""

import json

import pytest

from tests.helpers import browser as shared
from tests.helpers.architectures import make


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("sensitivity")
    make("llama", root / "models" / "tiny")
    with shared.dashboard(shared.REPOSITORY / "app.py", root, str(root / "models")) as address:
        yield address


def test_measured_and_read_by_clicks(browser, place):
    with shared.Reader(browser, place) as reader:
        page = reader.open("/sensitivity?model=tiny&sens_metric=weight&sens_tokens=2048")
        assert "Nothing measured on this model yet" in reader.text()
        page.get_by_role("button", name="New measurement").click()
        page.get_by_test_id("stPopoverBody").get_by_role("button", name="Measure").click()
        page.locator(".k-job.k-done").wait_for()
        reader.still()
        assert "Does entropy predict sensitivity here?" in reader.text()
        plot = page.locator(".st-key-sens_map .nsewdrag").first
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        page.mouse.click(box["x"] + box["width"] * 2.5 / 7, box["y"] + box["height"] * 1.5 / 2)
        page.locator(".k-name", has_text="model.layers.1.self_attn.v_proj").wait_for()
        assert "weight=model.layers.1.self_attn.v_proj" in page.url
        with page.expect_download() as file:
            page.get_by_role("button", name="JSON").click()
        document = json.loads(file.value.path().read_text())
        assert len(document["weights"]) == 14 and "entropy" in document["spearman"]
    assert not reader.complaints


def test_on_a_narrow_screen_nothing_is_wider_than_the_screen(browser, place):
    with shared.Reader(browser, place, color_scheme="dark") as reader:
        reader.page.set_viewport_size({"width": 420, "height": 900})
        page = reader.open("/sensitivity?model=demo")
        page.locator(".k-verdict").wait_for()
        reader.still()
        widest = page.evaluate(
            "Math.max(...[...document.querySelectorAll('[data-testid=stMain] .stElementContainer')]"
            ".map(e => e.getBoundingClientRect().right))"
        )
        assert widest <= 420
    assert not reader.complaints
