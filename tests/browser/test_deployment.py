"""The Deploy page in a real browser: a config.json dropped on it, a GPU chosen, the verdict read."""

import json
import shutil

import pytest

from tests.helpers import browser as shared
from tests.helpers import configs


@pytest.fixture(scope="module")
def place(demo_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deploy")
    model = folder / "models" / "small"
    model.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(demo_model / name, model / name)
    (folder / "mixtral.json").write_text(json.dumps(configs.MIXTRAL_8X7B))
    with shared.dashboard(shared.REPOSITORY / "app.py", folder, str(folder / "models")) as address:
        yield address, folder


def test_a_config_alone_gets_a_verdict_that_depends_on_whether_it_is_fixed(browser, place):
    address, folder = place
    with shared.Reader(browser, address) as reader:
        page = reader.open("/deploy?model=small&gpu=RTX%204090&tokens=8192&batch=4")
        assert "Deploy it dense" in reader.text()
        page.locator(".st-key-k-configs summary").click()
        page.locator(".st-key-config_instead input[type=file]").set_input_files(folder / "mixtral.json")
        page.get_by_text("Quantization alone does not fit").first.wait_for()
        reader.still()
        assert "46,702,792,704 parameters" in reader.text()
        page.locator(".st-key-fixed").get_by_text("fixed", exact=True).click()
        page.get_by_text("The full pipeline: a plan of at most 17 GB").first.wait_for()
        page.locator(".st-key-fixed").get_by_text("free to choose", exact=True).click()
        page.get_by_text("A smaller dense model: the checkpoint is not fixed").first.wait_for()
        reader.still()
        assert "fixed=free" in page.url
        first = page.locator(".k-ways tr.k-right td").first.inner_text()
        assert first.startswith("smaller dense model")
        assert page.evaluate("document.querySelector('.k-ways').scrollWidth <= window.innerWidth")
    assert not reader.complaints


def test_on_a_narrow_screen_nothing_is_wider_than_the_screen(browser, place):
    with shared.Reader(browser, place[0], color_scheme="dark") as reader:
        reader.page.set_viewport_size({"width": 420, "height": 900})
        page = reader.open("/deploy?model=small&gpu=L4")
        widest = page.evaluate(
            "Math.max(...[...document.querySelectorAll('[data-testid=stMain] .stElementContainer')]"
            ".map(e => e.getBoundingClientRect().right))"
        )
        assert widest <= 420
    assert not reader.complaints
