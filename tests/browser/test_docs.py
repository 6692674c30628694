"""The docs strip and the claims in a real browser: drawn, deep-linked, no wider than the window, one press that ends
in a figure beside the published one."""

import shutil

import pytest

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.studies.claims.check import results
from karipap_core.workspace import Workspace
from tests.helpers import browser as shared


@pytest.fixture(scope="module")
def place(request, tmp_path_factory):
    """(address of a dashboard, its workspace, the model's folder)."""
    try:
        source = request.getfixturevalue("demo_model")
    except pytest.skip.Exception:
        source = request.getfixturevalue("stories")
    folder = tmp_path_factory.mktemp("docs")
    model = folder / "models" / "small"
    model.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".safetensors"):
            shutil.copy(file, model)
    with shared.dashboard(shared.REPOSITORY / "app.py", folder, str(folder / "models")) as address:
        yield address, Workspace(folder / "workspace"), model


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 400)])
def test_pages_fit_and_diagrams_follow_the_theme(browser, place, scheme, width):
    with shared.Reader(browser, place[0], color_scheme=scheme) as reader:
        reader.page.set_viewport_size({"width": width, "height": 950})
        for path in ("networks?network=peps", "claims?model=small&claim=bytes"):
            page = reader.open(f"/{path}")
            wide = "document.querySelector('[data-testid=stMain]')"
            assert page.evaluate(f"{wide}.scrollWidth <= {wide}.clientWidth + 1")
            if "networks" in path:
                picture = page.locator("img.k-diagram")
                picture.wait_for()
                assert picture.evaluate("image => image.naturalWidth > 0 && image.clientWidth > 200")
                assert picture.get_attribute("alt").startswith("Four pairs of digits")
                # What the drawing's own media query goes by: with another theme its text turns light or dark.
                assert picture.evaluate("image => getComputedStyle(image).colorScheme") == scheme
        assert not reader.complaints


def test_the_strip_is_deep_linked_and_the_calculator_follows(browser, place):
    with shared.Reader(browser, place[0]) as reader:
        page = reader.open("/networks?network=lowrank")
        page.get_by_text("Breaks even", exact=True).wait_for()
        slider = page.get_by_role("slider", name="χ")
        before = page.locator(".st-key-k-calculator .k-facts").inner_text()
        slider.focus()
        page.keyboard.press("Home")
        page.wait_for_function(
            "before => document.querySelector('.st-key-k-calculator .k-facts').innerText !== before", arg=before
        )
        reader.still()
        assert "8,192" in page.locator(".st-key-k-calculator .k-facts").inner_text()  # χ = 1: 4096 + 4096
        page.get_by_role("radio", name="tree").click()
        page.wait_for_function("location.search.includes('network=tree')")
        page.get_by_text("bond on the shared branch").wait_for()
        page.reload()
        page.get_by_text("bond on the shared branch").wait_for()
        assert not reader.complaints


def test_one_press_checks_a_claim_and_the_figure_stays(browser, place):
    address, workspace, model = place
    with shared.Reader(browser, address) as reader:
        page = reader.open("/claims?model=small&claim=structure")
        assert "not checked yet" in reader.text()
        page.get_by_role("button", name="Check it here").click()
        page.wait_for_selector(".st-key-k-job-claim_job")
        page.reload()
        page.wait_for_selector(".k-job.k-done")
        reader.still()
        assert page.locator("td.k-measured").count() == 4 and "nats" in reader.text()
        document = results(open_checkpoint(model).key, workspace)["structure"]
        assert document["measured"]["trained"] in reader.text() and document["verdict"] in reader.text()
        reader.go("Networks")
        reader.go("Claims")
        assert document["verdict"] in reader.text()
        assert not reader.complaints
