"""A person opens a model that no root holds: typed by keyboard, asked once, remembered by the next server; then drops a
profile to look at without weights."""

import shutil
from functools import partial

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.profiles.build import build_profile
from karipap_core.workspace import Workspace
from tests.helpers.browser import Reader, dashboard
from tests.helpers.paths import REPOSITORY


def box(reader: Reader):
    """The button of the model, pressed from the keyboard, and the box behind it."""
    reader.page.locator(".st-key-k-model button").first.press("Enter")
    field = reader.page.get_by_label("Open a model")
    field.wait_for()
    return field


def name(reader: Reader) -> str:
    return reader.page.locator(".st-key-k-model button").first.inner_text()


def test_a_folder_outside_the_roots_is_opened_by_keyboard_and_remembered(browser, made, tmp_path):
    folder = tmp_path / "elsewhere" / "mine"
    shutil.copytree(made("llama"), folder)
    checkpoint, workspace = open_checkpoint(folder), Workspace(tmp_path / "workspace")
    profile = workspace.profile_dir(checkpoint.key, "made")
    build_profile(checkpoint, folder=profile)
    (tmp_path / "models").mkdir()
    served = partial(dashboard, REPOSITORY / "app.py", tmp_path, str(tmp_path / "models"))
    with served() as address, Reader(browser, address) as reader:
        page = reader.open("/")
        page.wait_for_selector(".st-key-map .main-svg")
        field = box(reader)
        field.press_sequentially(str(folder.parent))
        permit = page.get_by_role("button", name="Open it")
        permit.wait_for()
        page.locator(".st-key-k-open-ask").get_by_text(str(folder.parent)).wait_for()
        permit.press("Enter")
        page.wait_for_function("location.search.includes('model=mine')")
        reader.still()
        page.wait_for_selector(".st-key-map .main-svg")
        assert "mine" in name(reader) and not field.is_visible()
        page.get_by_text("Weight", exact=True).first.wait_for()
        # A request of the page later must not bring back what the closed box held before.
        reader.go("Plan")
        assert "mine" in name(reader) and "model=mine" in page.url
        box(reader)
        assert "mine" in name(reader)
        assert not reader.complaints
    with served() as address, Reader(browser, address) as reader:
        reader.page.set_viewport_size({"width": 390, "height": 844})
        page = reader.open("/?model=mine")
        page.wait_for_selector(".st-key-map .main-svg")
        box(reader).fill(str(folder.parent) + "/")
        page.get_by_role("button", name="mine").last.wait_for()
        assert not page.get_by_role("button", name="Open it").count()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator("[data-testid=stFileUploader] input").first.set_input_files([*profile.iterdir()])
        page.wait_for_function("document.body.innerText.includes('profile only')")
        reader.still()
        assert "mine (profile only)" in name(reader) and page.locator(".st-key-map .main-svg").count()
        assert not reader.complaints
