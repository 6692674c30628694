"""The story in a real browser: see the map, open a weight, run a plan, see its point, carry the plan away and back."""

import json
import re

import pytest

from karipap_core import jobs
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.plan.document import Plan, model_entry
from karipap_core.workspace import Workspace
from karipap_core.workspace.names import Names
from tests.helpers import browser as shared
from tests.helpers.architectures import make

BRIGHT = (
    "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor.match(/\\d+/g).slice(0, 3)"
    ".reduce((sum, part) => sum + Number(part), 0) > 384"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(address of a dashboard, its workspace, the checkpoint): a small model in a folder of the dashboard's."""
    folder = tmp_path_factory.mktemp("story")
    model = make("llama", folder / "models" / "small", hidden_size=96, intermediate_size=192, num_hidden_layers=4)
    workspace = Workspace(folder / "workspace")
    checkpoint = open_checkpoint(model)
    with shared.dashboard(shared.REPOSITORY / "app.py", folder, str(folder / "models")) as address:
        yield address, workspace, checkpoint


def plan_for(checkpoint, kept: float) -> Plan:
    """Every query of the model cut to a part of its break-even χ, in the metric that needs no text."""
    weights = {}
    for weight in checkpoint.weights:
        n_out, n_in = weight.shape
        chi = max(1, int(kept * n_out * n_in / (n_out + n_in)))
        cut = {"network": "lowrank", "out": [n_out], "in": [n_in], "chi": [chi], "quantize": None}
        if weight.compressible:
            weights[weight.name] = cut if weight.role == "q" else {"network": "dense"}
    return Plan(model_entry(checkpoint), "weight", weights, rule="uniform")


@pytest.fixture
def reader(browser, place):
    with shared.Reader(browser, place[0]) as person:
        yield person
    assert not person.complaints


def right_edge(page, button: str) -> float:
    box = page.get_by_role("button", name=button).bounding_box()
    return box["x"] + box["width"]


def layers_of(checkpoint) -> int:
    return len({weight.layer for weight in checkpoint.weights if weight.layer is not None})


def test_a_first_visit_profiles_the_model_by_itself_and_a_click_opens_a_weight(reader, place):
    _, workspace, checkpoint = place
    page = reader.open("/tradeoff?model=small")  # a fresh server's first request may be for any page
    page.get_by_text("Nothing has been measured").wait_for()
    page = reader.go("Profile")
    page.wait_for_selector(".st-key-map .main-svg")
    reader.still()
    names = {(w.layer, w.role): w.name for w in checkpoint.weights}
    reader.click_cell(1, 1, layers_of(checkpoint))
    assert page.locator(".k-name").inner_text() == names[1, "k"]
    reader.click_cell(0, 6, layers_of(checkpoint))
    assert page.locator(".k-name").inner_text() == names[0, "down"]
    assert f"weight={names[0, 'down']}" in page.url
    page.reload()
    reader.still()
    assert page.locator(".k-name").inner_text() == names[0, "down"]
    twin = page.locator(".st-key-cell input")  # the same without a mouse
    twin.focus()
    twin.fill("layer 1 · k")
    page.keyboard.press("Enter")
    reader.still()
    assert page.locator(".k-name").inner_text() == names[1, "k"]
    reader.click_cell(0, 6, layers_of(checkpoint))
    assert page.locator(".k-name").inner_text() == names[0, "down"]


def test_quantity_and_view_change_the_picture_and_the_url(reader):
    page = reader.open("/?model=small&quantity=excess&view=kept")
    assert "minus S" in reader.text() and "weight kept" in page.locator(".st-key-detail").inner_text()
    page.get_by_role("radio", name="Singular values").click()
    reader.still()
    assert "view=" not in page.url and "quantity=excess" in page.url
    page.locator(".st-key-detail").get_by_text("edge of the bulk").first.wait_for()


@pytest.mark.parametrize("path", ["/", "/plan", "/run", "/tradeoff"])
def test_every_chart_and_table_has_a_name_and_pages_fit_the_window(browser, place, path):
    """In light, and once the system has turned dark under the page."""
    with shared.Reader(browser, place[0], color_scheme="light") as reader:
        reader.page.set_viewport_size({"width": 900, "height": 900})
        page = reader.open(f"{path}?model=small")
        assert page.title().startswith(("Profile", "Plan", "Run", "Trade-off"))
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            reader.still()
            for part in ("stPlotlyChart", "stDataFrame"):
                for element in page.get_by_test_id(part).all():
                    assert element.get_attribute("aria-label") or element.locator("[aria-label]").count()
            wide = "document.querySelector('[data-testid=stMain]')"
            assert page.evaluate(f"{wide}.scrollWidth <= {wide}.clientWidth + 1")
            page.wait_for_function(f"{BRIGHT} === {json.dumps(scheme == 'light')}")
        assert not reader.complaints


def test_a_plan_is_dragged_run_and_ends_as_a_point_on_the_curve(reader, browser, place):
    address, workspace, checkpoint = place
    page = reader.open("/plan?model=small")
    budget, cell = (page.get_by_role("slider", name=name, exact=True) for name in ("budget", "layer 0 q"))
    chi = int(shared.value(cell))
    shared.drag(page, budget, float(shared.value(budget)) / 100, 0.55)
    reader.still()
    kept = float(shared.value(budget))
    assert 45 < kept < 65 and page.locator(".figure.kept .value").inner_text() == f"{kept:.1f}%"
    cell.focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    reader.still()
    now = int(shared.value(cell))
    assert now != chi and "1 set by hand" in page.locator(".held").inner_text()
    page.get_by_role("button", name="Compress & evaluate").click()
    page.wait_for_selector(".st-key-k-job-job")
    job_id = re.search(r"job=([\w-]+)", page.url)[1]
    page.reload()  # the job goes on, and the page finds it again
    page.wait_for_selector(".st-key-k-job-job")
    with shared.Reader(browser, address) as other:  # a second browser looks on
        other.open(f"/run?model=small&job={job_id}")
        other.page.wait_for_selector(".st-key-k-job-job")
        assert other.page.get_by_role("button", name="Compress & evaluate").is_disabled()
    page.wait_for_selector(".k-job.k-done")
    reader.still()
    run = next(run for run in workspace.runs if run["id"].startswith("run-"))
    name = next(w.name for w in checkpoint.weights if (w.layer, w.role) == (0, "q"))
    assert run["plan"]["weights"][name]["chi"] == [now]
    said = reader.text()
    assert f"{run['rise']:+z.4f}" in said and f"{run['kept']:.1%}" in said and "dense" in said
    assert open_checkpoint(run["folder"], compressed=True).parameters == run["parameters"] < checkpoint.parameters
    assert page.get_by_role("button", name="See it on the trade-off").count() == 2  # the result's, and the run's own
    page.get_by_role("button", name="See it on the trade-off").first.click()
    page.wait_for_url("**/tradeoff?**")
    reader.still()
    assert "No baseline has been measured" in reader.text() and f"point={run['id']}" in page.url
    chart = page.locator(".st-key-curve")
    name = Names(workspace).of(run["id"])
    assert name.startswith("small-0.") and chart.locator(".annotation").filter(has_text=name).count() == 1
    markers = chart.locator(".scatterlayer .point")
    assert markers.count() == 3, "the run, the ring around it, and the dense model"
    page.get_by_role("button", name="Close").click()
    reader.still()
    assert markers.count() == 2 and "point=" not in page.url
    markers.last.click(force=True)
    reader.still()
    assert f"point={run['id']}" in page.url
    page.get_by_role("button", name="Open this plan on the board").click()
    page.wait_for_url("**/plan?**")
    reader.still()
    assert shared.value(page.get_by_role("slider", name="layer 0 q", exact=True)) == str(now)


def test_the_plan_of_a_run_is_carried_away_and_back(reader, place):
    _, workspace, checkpoint = place
    if not workspace.runs:
        pytest.skip("nothing has been run")
    page = reader.open("/run?model=small")
    name = Names(workspace).of(workspace.runs[-1]["id"])
    with page.expect_download() as download:
        page.get_by_role("button", name="Its plan").click()
    assert download.value.suggested_filename == f"{name}.plan.json"
    file = download.value.path()
    exported = json.loads(file.read_text())
    assert exported.pop("name") == name
    assert exported["weights"] in [run["plan"]["weights"] for run in workspace.runs]
    page.get_by_role("button", name="Import").click()
    page.set_input_files(
        "input[type=file]",
        {"name": "come back.json", "mimeType": "application/json", "buffer": json.dumps(exported).encode()},
    )
    page.get_by_text("Imported as come-back").wait_for()
    assert Plan.load(workspace.find_plan(name)).weights == Plan.from_json(exported).weights


def test_cancel_stops_a_job_and_says_so(reader, place):
    _, workspace, checkpoint = place
    plan_for(checkpoint, 0.9).save(workspace.plan_file("heavy"))
    page = reader.open("/run?model=small&plan=heavy&tokens=131072")
    page.get_by_role("button", name="Compress & evaluate").click()
    page.wait_for_selector(".st-key-k-job-job")
    right = right_edge(page, "Cancel")
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector(".k-job.k-cancelled")
    assert right_edge(page, "Close") == pytest.approx(right, abs=1)  # it stands still while Cancel goes
    job_id = re.search(r"job=([\w-]+)", page.url)[1]
    assert jobs.get(job_id, workspace).status()["state"] == "cancelled"
    assert page.get_by_role("button", name="Resume").is_enabled()
    page.get_by_role("button", name="Close").click()
    page.wait_for_function("!location.search.includes('job=')")
