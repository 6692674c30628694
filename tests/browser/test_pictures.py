"""Figures are saved from every page that has some: PNG, SVG and a page of its own, each opened again and read."""

import re
import struct
from xml.etree import ElementTree

import pytest

from karipap_core import __version__
from tests.helpers.browser import Reader, dashboard
from tests.helpers.paths import REPOSITORY

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def place(demo_model, tmp_path_factory):
    with dashboard(REPOSITORY / "app.py", tmp_path_factory.mktemp("pictures")) as address:
        yield address


def saved(reader, strip, kind: str, folder):
    """The file that a button makes."""
    with reader.page.expect_download() as download:
        strip.get_by_role("button", name=re.compile(f"as {kind}:")).click()
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    return file


def words(svg) -> list[tuple[str, float, float]]:
    """(text, y, height of the picture) of the texts of the frame, top to bottom."""
    root = ElementTree.parse(svg).getroot()
    return [(each.text, float(each.get("y")), float(root.get("height"))) for each in root.findall(f"{SVG}text")]


def test_a_map_is_saved_in_each_way_in_the_dark_and_opens_without_the_dashboard(browser, place, tmp_path):
    with Reader(browser, place, color_scheme="dark") as reader:
        reader.open("/?metric=functional")
        strip = reader.page.locator(".picture").first
        svg, png, page = (saved(reader, strip, kind, tmp_path) for kind in ("SVG", "PNG", "HTML"))
        (title, top, high), *_, (note, low, _) = words(svg)
        assert title == "Entropy S of every weight, spectrum of the layers' outputs" and 0 < top < low < high
        assert re.fullmatch(
            r"demo model · on Python standard library, calibration modules · \d{4}-\d\d-\d\d · Karipap " + __version__,
            note,
        )
        inner = ElementTree.parse(svg).getroot().find(f"{SVG}svg")
        drawn = {each.text for each in inner.iter(f"{SVG}text")} | {each.text for each in inner.iter(f"{SVG}tspan")}
        assert {"layer 5", "down", "Entropy S (nats)"} <= drawn
        width, height = struct.unpack(">II", png.read_bytes()[16:24])
        assert (width, height) == (2000, 2 * int(high)) and png.read_bytes()[:4] == b"\x89PNG"
        assert not reader.complaints
    alone = browser.new_context(offline=True)
    opened = alone.new_page()
    asked = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(page.as_uri())
    plot = opened.locator(".nsewdrag").first.bounding_box()
    opened.mouse.move(plot["x"] + plot["width"] / 14, plot["y"] + plot["height"] / 12)
    opened.wait_for_selector(".hoverlayer .hovertext")
    assert "model.layers.0.self_attn.q_proj" in opened.locator(".hoverlayer").text_content()
    assert opened.locator("h1").text_content() == title and note in opened.locator("p").text_content()
    assert asked == [page.as_uri()]
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    alone.close()


def test_every_page_with_figures_saves_all_of_them(browser, place, tmp_path):
    with Reader(browser, place) as reader:
        for path in ("/plan", "/tradeoff", "/networks", "/sensitivity"):
            reader.open(path)
            strips, charts = reader.page.locator(".picture"), reader.page.get_by_test_id("stPlotlyChart")
            assert strips.count() == charts.count() > 0, path
            for at in range(strips.count()):
                (title, *_), *_, (note, *_) = words(saved(reader, strips.nth(at), "SVG", tmp_path))
                assert len(title) > 10 and note.endswith(f"Karipap {__version__}"), (path, title)
                assert ("demo model" in note) == (path != "/networks"), (path, note)
        assert not reader.complaints


def test_on_a_phone_no_button_of_a_figure_stands_over_it(browser, place):
    with Reader(browser, place, has_touch=True, is_mobile=True) as reader:
        reader.page.set_viewport_size({"width": 390, "height": 844})
        for path in ("/", "/tradeoff"):
            reader.open(path)
            for chart in reader.page.get_by_test_id("stPlotlyChart").all():
                box, bar = chart.bounding_box(), chart.locator(".modebar").bounding_box()
                assert bar["y"] >= box["y"] + box["height"] - 1, path
                chart.locator(".modebar-btn").last.click(trial=True)
            strip = reader.page.locator(".picture").first
            for button in strip.get_by_role("button").all():
                assert min(button.bounding_box()[side] for side in ("width", "height")) >= 40
