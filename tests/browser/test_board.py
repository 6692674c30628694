"""The χ board in a real browser: mouse, finger, keys, headings, budget, locks; what Python hears; every move drawn."""

import json
import re

import pytest

from tests.helpers import browser as shared

APP = shared.REPOSITORY / "tests" / "browser" / "board_app.py"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with shared.dashboard(APP, tmp_path_factory.mktemp("board")) as found:
        yield found


FOCUSED = (  # the name of what has the keyboard
    "(() => { let at = document.activeElement; while (at.shadowRoot) at = at.shadowRoot.activeElement;"
    " return at.getAttribute('aria-label'); })()"
)


class Board:
    """A person at the board."""

    def __init__(self, browser, address: str, query: str, **settings) -> None:
        self.reader = shared.Reader(browser, address, **settings)
        self.page = self.reader.page
        self.page.goto(f"{address}/{query}")
        self.slider("budget").wait_for()
        self.page.wait_for_function("document.querySelector('#told') !== null")
        self.reader.still()

    def slider(self, name: str):
        return self.page.get_by_role("slider", name=name, exact=True)

    def value(self, name: str) -> float:
        return float(self.slider(name).get_attribute("aria-valuenow"))

    def says(self, name: str) -> str:
        return self.slider(name).get_attribute("aria-valuetext")

    def figure(self, which: str) -> str:
        return self.page.locator(f".figure.{which} .value").inner_text()

    def told(self) -> dict:
        return json.loads(self.page.locator("#told").text_content())

    def release(self, act) -> dict:
        """Does something that Python should hear of; returns what it then knows."""
        before = self.told()["seq"]
        act()
        self.page.wait_for_function(
            "seq => JSON.parse(document.querySelector('#told').textContent).seq > seq", arg=before
        )
        return self.told()

    def press_at(self, name: str, part: float = 0.5) -> tuple[float, float]:
        box = self.slider(name).bounding_box()
        x, y = box["x"] + part * box["width"], box["y"] + box["height"] - 8
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        return x, y

    def drag(self, name: str, *steps: float, part: float = 0.5) -> dict:
        x, y = self.press_at(name, part)
        for dx in steps:
            self.page.mouse.move(x + dx, y)
        return self.release(self.page.mouse.up)

    def key(self, name: str, *keys: str) -> dict:
        self.slider(name).focus()

        def act() -> None:
            for key in keys:
                self.page.keyboard.press(key)

        return self.release(act)


@pytest.fixture
def board(browser, address):
    with_board = Board(browser, address, "?layers=4")
    yield with_board
    with_board.reader.context.close()
    assert not with_board.reader.complaints


def name_of(layer: int, role: str) -> str:
    return f"model.layers.{layer}.{'self_attn' if role in 'qkvo' else 'mlp'}.{role}_proj"


def test_the_budget_allocates_while_it_is_dragged_and_python_agrees(board):
    assert board.figure("kept") == "100.0%"
    x, y = board.press_at("budget", 0.95)
    seen = set()
    for dx in range(0, -400, -40):
        board.page.mouse.move(x + dx, y)
        board.page.wait_for_timeout(40)
        seen.add(board.figure("kept"))
    assert len(seen) >= 8, "the figures move with the pointer"
    told = board.release(board.page.mouse.up)
    assert told["cause"] == "budget" and told["hand"] == []
    assert board.figure("kept") == f"{100 * told['figures']['kept']:.1f}%"
    assert board.figure("loss") == f"{told['figures']['loss']:.3f}"
    assert abs(told["budget"] - told["figures"]["kept"]) < 0.01
    chis = told["chi"]
    assert len({chi for chi in chis.values() if chi}) > 5, "each weight has its own χ"


def test_a_cell_is_a_slider_for_the_mouse(board):
    board.drag("budget", -200, part=0.9)
    start = board.value("layer 1 gate")
    told = board.drag("layer 1 gate", -10, -30)
    assert told["cause"] == "cell" and told["hand"] == [name_of(1, "gate")]
    assert told["chi"][name_of(1, "gate")] == board.value("layer 1 gate") != start
    assert told["selected"] == name_of(1, "gate")
    coarse = board.value("layer 1 gate")
    board.page.keyboard.down("Shift")  # ten times finer
    fine = board.drag("layer 1 gate", 30)["chi"][name_of(1, "gate")]
    board.page.keyboard.up("Shift")
    assert 0 < abs(fine - coarse) < 0.4 * abs(coarse - start) + 1


def test_escape_takes_a_drag_back_and_python_hears_nothing(board):
    board.drag("budget", -200, part=0.9)
    before, seq = board.figure("kept"), board.told()["seq"]
    x, y = board.press_at("layer 2 up")
    board.page.mouse.move(x - 40, y)
    board.page.wait_for_timeout(60)
    assert board.figure("kept") != before
    board.page.keyboard.press("Escape")
    board.page.wait_for_timeout(400)
    assert board.figure("kept") == before and board.told()["seq"] == seq
    board.page.mouse.up()


def test_a_cell_is_a_slider_for_the_keyboard(board):
    board.drag("budget", -200, part=0.9)
    name = "layer 0 k"
    low = board.key(name, "Home")
    assert low["chi"][name_of(0, "k")] == 1 and board.value(name) == 1
    assert board.key(name, "ArrowRight", "ArrowUp")["chi"][name_of(0, "k")] == 3
    assert board.key(name, "ArrowLeft")["chi"][name_of(0, "k")] == 2
    paged = board.key(name, "PageUp")["chi"][name_of(0, "k")]
    assert 0.08 < (paged - 2) / 2048 < 0.12, "a tenth of break-even"
    assert board.key(name, "End")["chi"][name_of(0, "k")] == 0 and "dense" in board.says(name)
    assert board.key(name, "ArrowLeft")["chi"][name_of(0, "k")] > 2000, "from dense to the largest option"


def test_ctrl_and_arrows_walk_the_grid_with_one_tab_stop(board):
    board.slider("layer 0 q").focus()
    for key, name in [
        ("ArrowRight", "layer 0 k"),
        ("ArrowDown", "layer 1 k"),
        ("ArrowLeft", "layer 1 q"),
        ("ArrowLeft", "layer 1, all roles"),
        ("ArrowUp", "layer 0, all roles"),
        ("ArrowUp", "all weights"),
    ]:
        board.page.keyboard.press(f"Control+{key}")
        assert board.page.evaluate(FOCUSED) == name
    stops = board.page.locator(".scroll [role=slider][tabindex='0']")
    assert stops.count() == 1


def test_headings_drag_a_role_a_layer_and_all(board):
    board.drag("budget", -200, part=0.9)
    before = board.told()["chi"]
    told = board.drag("role up, all layers", -5, -25)
    changed = {name for name, chi in told["chi"].items() if chi != before[name]}
    assert changed and all(name.endswith("up_proj") for name in changed) and set(told["hand"]) == changed
    before = told["chi"]
    told = board.drag("layer 2, all roles", -20)
    assert all(".2." in name for name, chi in told["chi"].items() if chi != before[name])
    before = told["chi"]
    told = board.drag("all weights", -20)
    assert sum(chi != before[name] for name, chi in told["chi"].items()) > 20
    kept = told["figures"]["kept"]
    assert board.key("role q, all layers", "ArrowLeft", "ArrowLeft")["figures"]["kept"] < kept


def test_locked_weights_stay(board):
    board.drag("budget", -200, part=0.9)
    locked = board.key("layer 1 gate", "l")
    assert locked["locked"] == [name_of(1, "gate")] and "locked" in board.says("layer 1 gate")
    chi = locked["chi"][name_of(1, "gate")]
    for told in (
        board.drag("budget", -150, part=0.7),
        board.drag("role gate, all layers", -20),
        board.drag("layer 1 gate", -20),
    ):
        assert told["chi"][name_of(1, "gate")] == chi
    board.page.get_by_role("button", name="lock or unlock the chosen weights").click()
    board.page.wait_for_function("JSON.parse(document.querySelector('#told').textContent).locked.length === 0")


def test_what_is_set_by_hand_stays_at_every_budget_until_it_is_released(board):
    board.drag("budget", -200, part=0.9)
    names = [name_of(1, "gate"), name_of(2, "up"), name_of(3, "q")]
    board.drag("layer 1 gate", -20)
    board.drag("layer 2 up", 25)
    by_hand = board.drag("layer 3 q", -15)
    assert set(by_hand["hand"]) == set(names)
    locked = board.key("layer 0 k", "l")
    for dx in (-60, 90):
        told = board.drag("budget", dx, part=0.5)
        assert {name: told["chi"][name] for name in names} == {name: by_hand["chi"][name] for name in names}
        assert set(told["hand"]) == set(names) and told["locked"] == locked["locked"]
        moved = sum(chi != by_hand["chi"][name] for name, chi in told["chi"].items())
        assert moved > 10, "the budget works around them"
    assert board.page.locator(".held").inner_text().startswith("3 set by hand and 1 locked stay")
    # By keyboard: the least that can be met around them, told where less is asked for, and the release.
    told = board.key("budget", "Home")
    low = told["figures"]["kept"]
    told = board.key("budget", "PageDown")
    assert told["figures"]["kept"] == low
    assert f"cannot be met: the smallest budget is {100 * low:.1f}%" in board.page.locator(".held").inner_text()
    kept = told["figures"]["kept"]
    board.slider("budget").focus()
    board.page.keyboard.press("Tab")
    assert "release the 3 set by hand" in board.page.evaluate(FOCUSED)
    told = board.release(lambda: board.page.keyboard.press("Enter"))
    assert told["cause"] == "release" and told["hand"] == [] and told["locked"] == locked["locked"]
    assert any(told["chi"][name] != by_hand["chi"][name] for name in names)
    assert told["figures"]["kept"] <= kept + 1e-6, "at the same size"


def test_a_quick_second_edit_is_not_undone_by_the_answer_to_the_first(board):
    board.drag("budget", -200, part=0.9)
    for _ in range(3):
        board.slider("layer 1 q").focus()
        board.page.keyboard.press("ArrowLeft")
        board.page.keyboard.press("l")  # heard at once, while the arrow is heard a moment later
        board.page.keyboard.press("l")
        board.page.keyboard.press("ArrowLeft")
    board.page.wait_for_timeout(1500)
    assert board.told()["chi"][name_of(1, "q")] == board.value("layer 1 q")
    assert board.told()["locked"] == []


def test_every_move_of_a_drag_is_drawn(browser, address):
    board = Board(browser, address, "?layers=32")
    board.page.evaluate(
        "(() => { window.seen = { moves: 0, frames: 0 }; let moving = false; const ask = requestAnimationFrame;"
        " addEventListener('pointermove', () => { seen.moves++; moving = true; }, true);"
        " addEventListener('pointermove', () => { moving = false; });"
        " window.requestAnimationFrame = f => moving ? ask(t => { f(t); seen.frames++; }) : ask(f); })()"
    )
    for name, span in (("budget", 4), ("layer 3 down", 1)):
        x, y = board.press_at(name, 0.9)
        board.page.mouse.move(x - 5, y)
        board.page.wait_for_timeout(200)
        board.page.evaluate("Object.assign(seen, { moves: 0, frames: 0 })")
        for k in range(40):
            board.page.mouse.move(x - 5 - span * (k + 1), y)
        board.page.wait_for_timeout(200)
        seen = board.page.evaluate("seen")
        assert seen["moves"] == seen["frames"] == 40
        board.release(board.page.mouse.up)
    board.reader.context.close()


def test_experts_fold_into_one_cell_that_opens(browser, address):
    board = Board(browser, address, "?layers=3&experts=4")
    told = board.drag("budget", -300, part=0.9)
    folded = board.slider("layer 1 gate, 4 weights")
    assert folded.count() == 1 and board.slider("layer 1 gate expert 2").count() == 0
    told = board.drag("layer 1 gate, 4 weights", -30)
    assert sum("layers.1.block_sparse_moe" in name and name.endswith("gate_proj") for name in told["hand"]) == 4
    board.page.get_by_role("button", name="show the experts of layer 1").click()
    expert = board.slider("layer 1 gate expert 2")
    expert.wait_for()
    told = board.key("layer 1 gate expert 2", "Home")
    assert told["chi"]["model.layers.1.block_sparse_moe.experts.2.gate_proj"] == 1
    assert told["chi"]["model.layers.1.block_sparse_moe.experts.1.gate_proj"] != 1
    board.slider("layer 1, all roles").focus()
    board.page.keyboard.press("Enter")  # and closes
    expert.wait_for(state="detached")
    assert not board.reader.complaints
    board.reader.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_ink_can_be_read_on_every_heat(browser, address, scheme):
    """Contrast of the text with each colour of the cells: at least 4.5."""
    board = Board(browser, address, "?layers=4", color_scheme=scheme)
    paper, ink = (
        board.page.locator(".chi-board").first.evaluate(f"b => getComputedStyle(b).{key}")
        for key in ("backgroundColor", "color")
    )
    ramp = board.page.locator(".ramp").evaluate("r => getComputedStyle(r).backgroundImage")
    colours = [paper, *re.findall(r"rgba?\([^)]*\)", ramp)]
    assert len(colours) > 30

    def luminance(colour: str) -> float:
        parts = [float(x) / 255 for x in re.findall(r"[\d.]+", colour)[:3]]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in colours:
        low, high = sorted((luminance(colour), luminance(ink)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (colour, ink)
    board.reader.context.close()


def test_on_a_phone_swipes_scroll_and_a_tapped_cell_is_set_with_a_slider(browser, address):
    board = Board(browser, address, "?layers=24&listed=1", **shared.PHONE)
    finger, page = shared.Finger(board.page), board.page
    scroll = page.locator(".scroll")
    assert "Tap a cell" in page.locator(".status-text").inner_text()
    page.locator(".fingers").wait_for()
    before, seq = board.figure("kept"), board.told()["seq"]
    scroll.scroll_into_view_if_needed()
    box = board.slider("layer 3 v").bounding_box()
    assert scroll.evaluate("s => s.scrollWidth > s.clientWidth + 100"), "words need more than the screen"
    finger.across(box, -160)
    page.wait_for_function("s => s.scrollLeft > 80", arg=scroll.element_handle())
    finger.across(board.slider("layer 3 o").bounding_box(), 0, -120)
    page.wait_for_function("s => s.scrollTop > 40", arg=scroll.element_handle())
    page.wait_for_timeout(400)
    assert board.figure("kept") == before and board.told()["seq"] == seq, "a swipe changes nothing"
    target = board.slider("layer 6 down")
    target.scroll_into_view_if_needed()
    assert board.release(target.tap)["selected"] == name_of(6, "down")
    slider = page.locator(".fingers input")
    assert slider.get_attribute("aria-label") == "layer 6 down: part kept"
    told = board.release(lambda: finger.across(slider.bounding_box(), -120, part=0.9))
    assert set(told["hand"]) == {name_of(layer, "down") for layer in range(24)}, "with those that share its cores"
    less = page.get_by_role("button", name="one step smaller")
    chi = told["chi"][name_of(6, "down")]
    assert board.release(less.tap)["chi"][name_of(6, "down")] == chi - 1
    board.slider("role up, all layers").tap()
    page.get_by_role("slider", name="role up, all layers: part kept").wait_for()
    less.tap()
    page.wait_for_function(
        "() => /up_proj/.test(JSON.stringify(JSON.parse(document.querySelector('#told').textContent).hand))"
    )
    for sized in (less, slider, board.slider("layer 6 down"), page.locator(".held button")):
        assert min(sized.first.bounding_box()[side] for side in ("width", "height")) >= 39
    budget = board.slider("budget")
    budget.scroll_into_view_if_needed()
    told = board.release(lambda: finger.across(budget.bounding_box(), -100, part=0.8))
    assert told["cause"] == "budget"
    board.reader.context.close()
    assert not board.reader.complaints


def test_seven_columns_fit_a_phone(browser, address):
    board = Board(browser, address, "?layers=24", **shared.PHONE)
    assert board.page.locator(".scroll").evaluate("s => s.scrollWidth <= s.clientWidth")
    box = board.slider("layer 3 down").bounding_box()
    assert box["width"] >= 34 and box["height"] >= 39 and box["x"] + box["width"] <= 390
    texts = board.page.locator(".keeps span, .rises span").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect()).map(r => [r.left, r.right])"
    )
    assert len(texts) > 6 and all(left >= 0 and right <= 390 for left, right in texts)
    board.reader.context.close()


def test_weights_that_share_cores_move_and_lock_together(browser, address):
    board = Board(browser, address, "?layers=3&listed=1")
    board.drag("budget", -250, part=0.9)
    told = board.drag("layer 1 gate", 10, 30)
    mates = [name_of(layer, "gate") for layer in range(3)]
    assert told["hand"] == mates and len({told["chi"][name] for name in mates}) == 1
    assert board.says("layer 0 gate").startswith(f"tree {told['chi'][mates[0]]}, keeps")
    board.slider("layer 1 gate").focus()
    assert "moves with the 2 it shares cores with" in board.page.locator(".status-text").inner_text()
    told = board.key("layer 2 gate", "l")
    assert told["locked"] == mates
    told = board.key("layer 0 up", "ArrowLeft")
    assert len({told["chi"][name_of(layer, "up")] for layer in range(3)}) == 1
    assert board.figure("kept") == f"{100 * told['figures']['kept']:.1f}%"
    board.reader.context.close()
    assert not board.reader.complaints
