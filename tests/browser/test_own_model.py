"""A model of one's own, from its path to a point on the trade-off and home: by mouse, by touch, by keyboard alone."""

import json
import os
import re
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from karipap_core.workspace import Workspace
from karipap_core.workspace.runs import read_runs
from pages.parts import take_home
from tests.helpers.architectures import make
from tests.helpers.browser import PHONE, Finger, Reader, dashboard, drag, value
from tests.helpers.paths import REPOSITORY

ROLES = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
MOST_STOPS = 40  # of Tab on the way to something
FOCUSED = "let at = document.activeElement; while (at.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;"
NAMED = (  # what has the keyboard, in words
    f"(() => {{ {FOCUSED} if (at === document.body) return ''; const of = at.getAttribute('aria-labelledby');"
    " return at.getAttribute('aria-label') || (of && document.getElementById(of)?.innerText)"
    " || at.labels?.[0]?.innerText || at.matches('a, button, summary, h1') && at.innerText || at.localName; })()"
)
LOOKS = (  # all by which a reader may see that something has the keyboard: on it, around it, in it
    "el => { const about = [...el.querySelectorAll('*')].slice(0, 40);"
    " const above = at => at.parentElement ?? at.getRootNode().host;"
    " for (let at = el, n = 0; at && n < 5; n++, at = above(at)) about.push(at);"
    " return about.flatMap(at => [null, '::before', '::after'].map(part => getComputedStyle(at, part)).flatMap(s =>"
    " [s.outlineStyle, s.outlineColor, s.boxShadow, s.borderColor, s.backgroundColor, s.color])).join(); }"
)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A small model that lies in no folder of the dashboard's."""
    folder = tmp_path_factory.mktemp("elsewhere") / "mine"
    return make("llama", folder, hidden_size=96, intermediate_size=192, num_hidden_layers=3)


@contextmanager
def just_started(browser, folder: Path, **settings):
    """(reader, workspace) at a server of a workspace without anything in it."""
    (folder / "models").mkdir()
    with (
        dashboard(REPOSITORY / "app.py", folder, str(folder / "models")) as address,
        Reader(browser, address, **settings) as reader,
    ):
        yield reader, Workspace(folder / "workspace")
        assert not reader.complaints


def entropies(folder: Path) -> dict[str, float]:
    """Name → S of every weight of the blocks, by NumPy alone."""
    found = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if any(f"{role}_proj" in name for role in ROLES):
            part = np.linalg.svd(weight.astype(np.float64), compute_uv=False) ** 2
            part /= part.sum()
            found[name.removesuffix(".weight")] = float(-(part * np.log(part)).sum())
    return found


def name_of(layer: int, role: int) -> str:
    return f"model.layers.{layer}.{ROLES[role]}_proj"


def mapped(reader: Reader) -> None:
    """Waits until the map of `own` stands."""
    reader.page.wait_for_function("location.search.includes('model=mine')")
    reader.page.wait_for_function("document.querySelectorAll('.st-key-map .heatmap-label').length === 21")
    reader.still()


def slider(page, name: str):
    return page.get_by_role("slider", name=name, exact=True)


def named_by_itself(page) -> str:
    """What the plan on the board is called where nobody names it."""
    name = page.get_by_label("Name", exact=True).get_attribute("placeholder")
    assert re.fullmatch(r"mine-0\.\d+-lowrank", name)
    return name


def is_ringed(reader: Reader, workspace: Workspace, name: str) -> dict:
    """The one run of a workspace, once its point on the trade-off is ringed and has this name, with the dense model's
    beside it."""
    page = reader.page
    page.wait_for_url("**/tradeoff?**")
    page.wait_for_selector(".st-key-curve .main-svg")
    reader.still()
    [run] = read_runs(workspace.runs_dir)
    assert f"point={run['id']}" in page.url
    chart = page.locator(".st-key-curve")
    assert chart.locator(".annotation").filter(has_text=name).count() == 1
    assert chart.locator(".scatterlayer .point").count() == 3, "the run, the ring around it, and the dense model"
    assert page.locator(".st-key-k-point").get_by_text(name).count()
    return run


def test_by_mouse_a_model_is_opened_cut_by_hand_measured_and_taken_home(browser, own, tmp_path):
    with just_started(browser, tmp_path, viewport={"width": 1440, "height": 950}) as (reader, workspace):
        page = reader.open("/")
        page.locator(".st-key-k-model button").first.click()
        page.get_by_label("Open a model").fill(str(own))
        page.get_by_role("button", name="Open it").click()
        mapped(reader)
        sure = entropies(own)
        written = page.locator(".st-key-map .heatmap-label").all_text_contents()
        assert sorted(written) == sorted(f"{entropy:.2f}" for entropy in sure.values())
        reader.click_cell(1, 5, 3)
        said = page.locator(".st-key-detail, .k-list").all_inner_texts()
        entropy = sure[name_of(1, 5)]
        assert page.locator(".k-name").first.inner_text() == name_of(1, 5)
        assert f"{entropy:.3f} nats" in "".join(said) and f"{np.exp(entropy):.1f} of 96" in "".join(said)

        page.get_by_role("button", name="Choose χ →").click()
        page.wait_for_url("**/plan?**")
        cells = [slider(page, f"layer {layer} {role}") for layer, role in ((0, "gate"), (1, "q"), (2, "down"))]
        before = [value(cell) for cell in cells]
        reader.still()
        for cell, to in zip(cells, (0.25, 0.8, 0.3), strict=True):
            drag(page, cell, 0.5, to)
            reader.still()
        by_hand = [value(cell) for cell in cells]
        assert all(now != then for now, then in zip(by_hand, before, strict=True))
        other, budget = slider(page, "layer 2 up"), slider(page, "budget")
        untouched = value(other)
        drag(page, budget, 0.64, 0.45)
        reader.still()
        assert [value(cell) for cell in cells] == by_hand and value(other) != untouched
        assert page.locator(".held").inner_text().startswith("3 set by hand")
        page.get_by_label("Name", exact=True).fill("three by hand")
        page.keyboard.press("Enter")
        reader.still()
        with page.expect_download() as download:
            page.get_by_role("button", name="Export").click()
        assert download.value.suggested_filename == "three-by-hand.plan.json"
        file = tmp_path / "three-by-hand.plan.json"
        download.value.save_as(file)
        plan = json.loads(file.read_text())
        names = (name_of(0, 4), name_of(1, 0), name_of(2, 6))
        assert [plan["weights"][name]["chi"] for name in names] == [[int(chi)] for chi in by_hand]

        page.get_by_role("button", name="Reset", exact=True).click()
        reader.still()
        assert [value(cell) for cell in cells] != by_hand
        page.get_by_role("button", name="Import").click()
        page.set_input_files("input[type=file]", file)
        page.wait_for_function("location.search.includes('draft=')")
        reader.still()
        assert [value(cell) for cell in cells] == by_hand
        page.get_by_role("button", name="Compress & evaluate").click()
        page.locator(".st-key-k-jobs").get_by_text(re.compile("1 (running|waiting)")).wait_for()
        see = page.get_by_role("button", name="See it on the trade-off").first
        see.wait_for()
        see.click()
        run = is_ringed(reader, workspace, "three-by-hand")
        assert run["plan"]["weights"] == plan["weights"]

        page.get_by_role("button", name="Take it home").click()
        page.wait_for_url("**/run?**")
        link = page.get_by_role("link", name="Download the model")
        with page.expect_download() as download:
            link.click()
        lines = page.locator("[data-testid=stCode]").filter(has_text="from_pretrained").inner_text()
        with zipfile.ZipFile(download.value.path()) as found:
            found.extractall(tmp_path / "home")
        home, there = tmp_path / "home" / "three-by-hand", run["folder"]
        assert there in lines and len(lines.strip().splitlines()) == 2
        assert out_of(lines.replace(there, str(home)), tmp_path, home) == [run["parameters"], 8]

        page.get_by_role("button", name="Export").click()
        link = page.get_by_role("link", name="Download the export")
        link.wait_for()
        with page.expect_download() as download:
            link.click()
        with zipfile.ZipFile(download.value.path()) as found:
            found.extractall(tmp_path / "exported")
        [exported] = (tmp_path / "exported").iterdir()
        card = (exported / "README.md").read_text()
        assert "weights as dense" in card and "weights as dense" in reader.text()  # low-rank is, where one is loaded
        assert "quantization_config" not in json.loads((exported / "config.json").read_text())


def out_of(lines: str, cwd: Path, home: Path) -> list[int]:
    """[parameters, tokens] of a model that these lines load in a fresh process, after it has written some."""
    lines += (
        "\nimport torch\nmore = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False)\n"
        "print(sum(p.numel() for p in model.parameters()), more.shape[1])"
    )
    path = {"PYTHONPATH": "" if take_home.installed() else str(REPOSITORY)}
    told = {"cwd": cwd, "env": os.environ | path, "capture_output": True, "text": True, "timeout": 240}
    done = subprocess.run([sys.executable, "-c", lines], **told)
    assert done.returncode == 0, done.stderr[-2000:]
    return [int(number) for number in done.stdout.split()[-2:]]


def test_on_a_phone_by_touch_a_model_is_opened_cut_and_measured(browser, own, tmp_path):
    def fits() -> bool:
        wide = "[document.documentElement, document.querySelector('[data-testid=stMain]')]"
        return page.evaluate(f"{wide}.every(e => e.scrollWidth <= e.clientWidth + 1) && innerWidth === 390")

    with just_started(browser, tmp_path, **PHONE) as (reader, workspace):
        page, finger = reader.open("/"), Finger(reader.page)
        page.locator(".st-key-k-model button").first.tap()
        page.get_by_label("Open a model").tap()
        page.keyboard.type(str(own)[:-2])
        permit = page.get_by_role("button", name="Open it")
        permit.wait_for()
        page.keyboard.type(str(own)[-2:])
        permit.tap()  # before the page has heard of the last letters: what is in the box is meant all the same
        mapped(reader)
        assert fits()
        labels = page.locator(".st-key-map .heatmap-label").evaluate_all(
            "all => all.map(e => e.getBoundingClientRect()).map(r => [r.top, r.left, r.right, r.height])"
        )
        assert len(labels) == 21 and min(height for *_, height in labels) >= 9
        labels.sort(key=lambda box: (round(box[0]), box[1]))
        for (top, _, right, _), (below, left, _, _) in zip(labels, labels[1:], strict=False):
            assert round(top) != round(below) or left >= right + 2, "numbers of neighbours touch"
        page.get_by_role("button", name="Choose χ →").tap()
        page.wait_for_url("**/plan?**")
        cell, budget = slider(page, "layer 2 down"), slider(page, "budget")
        before = value(cell)
        reader.still()
        assert fits()
        cell.tap()
        control = page.locator(".fingers input")
        assert control.get_attribute("aria-label") == "layer 2 down: part kept"
        control.scroll_into_view_if_needed()
        finger.across(control.bounding_box(), -100, part=0.64)
        reader.still()
        by_hand = value(cell)
        assert int(by_hand) < int(before)
        budget.scroll_into_view_if_needed()
        finger.across(budget.bounding_box(), -80, part=0.64)
        reader.still()
        assert value(cell) == by_hand and page.locator(".held").inner_text().startswith("1 set by hand")
        assert fits()
        name = named_by_itself(page)
        page.get_by_role("button", name="Compress & evaluate").tap()
        see = page.get_by_role("button", name="See it on the trade-off").first
        see.wait_for()
        assert fits()
        see.tap()
        run = is_ringed(reader, workspace, name)
        assert fits() and run["plan"]["weights"][name_of(2, 6)]["chi"] == [int(by_hand)]


class Keyboard:
    """A person who has a keyboard alone: walks with Tab, and sees at every stop where it is."""

    def __init__(self, page) -> None:
        self.page = page
        # Looks are compared at once. A button over a code block is hidden late on purpose, so that Tab can reach it.
        page.add_style_tag(content=":not([data-testid=stCode] *) { transition: none !important; }")

    def name(self) -> str:
        found = self.page.evaluate(NAMED)
        assert found, "the focus is lost"
        return " ".join(found.split())

    def to(self, name: str, key: str = "Tab") -> None:
        """Tab until something has the keyboard whose name, after its icon's, ends so."""
        before = None
        for _ in range(MOST_STOPS):
            if before is not None and re.search(f"(^|\\w+_\\w+ ){name}( expand_more)?$", self.name()):
                return
            self.page.keyboard.press(key)
            if before is not None:
                assert before[0].evaluate(LOOKS) != before[1], f"nothing shows the focus: {before[2]}"
            at = self.page.evaluate_handle(f"(() => {{ {FOCUSED} return at; }})()")
            before = (at, at.evaluate(LOOKS), self.name())
        raise AssertionError(f"no {name} by Tab; the last stop was {self.name()}")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def rests(self, name: str) -> None:
        """The focus comes to something of this name by itself."""
        for _ in range(100):
            if name in " ".join(self.page.evaluate(NAMED).split()):
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"the focus is at {self.page.evaluate(NAMED)!r}, not at {name}")


def test_by_keyboard_alone_a_model_is_opened_cut_and_measured(browser, own, tmp_path):
    with just_started(browser, tmp_path) as (reader, workspace):
        page, keys = reader.open("/"), Keyboard(reader.page)
        keys.to("demo model")
        keys.press("Enter")
        keys.rests("Open a model")
        page.keyboard.type(str(own))
        page.locator(".st-key-k-open-ask").get_by_text(str(own)).wait_for()
        reader.still()
        keys.to("Open it")
        keys.press("Enter")
        mapped(reader)
        keys.rests("mine")
        keys.to("Choose χ →")
        keys.press("Enter")
        page.wait_for_url("**/plan?**")
        cell, other = slider(page, "layer 0 k"), slider(page, "layer 1 v")
        before = value(cell)
        reader.still()
        keys.rests("Plan")
        keys.to("budget")
        keys.to("layer 0 q")
        keys.press("Control+ArrowRight", "PageDown", "ArrowLeft")
        reader.still()
        assert keys.name() == "layer 0 k"
        by_hand = value(cell)
        assert int(by_hand) < int(before) - 1
        keys.press("Control+ArrowDown", "Control+ArrowRight", "l")
        reader.still()
        assert keys.name() == "layer 1 v" and "locked" in other.get_attribute("aria-valuetext")
        locked = value(other)
        keys.to("budget", "Shift+Tab")
        keys.press("PageDown", "PageDown")
        page.get_by_placeholder("mine-0.6-lowrank").wait_for()
        reader.still()
        assert keys.name() == "budget" and (value(cell), value(other)) == (by_hand, locked)
        assert page.locator(".held").inner_text().startswith("1 set by hand and 1 locked stay")
        name = named_by_itself(page)
        keys.to("Compress & evaluate", "Shift+Tab")
        keys.press("Enter")
        page.wait_for_url("**/run?**")
        keys.rests("Run")
        page.get_by_role("button", name="See it on the trade-off").first.wait_for()
        reader.still()
        keys.to("See it on the trade-off")
        keys.press("Enter")
        run = is_ringed(reader, workspace, name)
        keys.rests("Trade-off")
        chis = [run["plan"]["weights"][name_of(*at)]["chi"] for at in ((0, 1), (1, 2))]
        assert chis == [[int(by_hand)], [int(locked)]]
