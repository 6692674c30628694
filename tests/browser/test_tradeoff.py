"""The trade-off, the comparison and the report in a real browser, on the demo model's shipped runs with intervals and
the scores of a task beside them."""

import json

import html5lib
import numpy as np
import pytest

from karipap_core.reading import read_json
from karipap_core.reports import html as report_html
from karipap_core.reports.report import report
from karipap_core.statistics import bootstrap as uncertainty
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import write_json
from karipap_core.workspace.runs import read_runs
from tests.helpers import browser as shared
from tests.helpers.made_up import task

TASK = "python_continuation"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A dashboard whose workspace has the shipped runs anew: some with documents, all with a task of 200 items."""
    root = tmp_path_factory.mktemp("tradeoff")
    generator, runs = np.random.default_rng(0), Workspace(root / "workspace").runs_dir
    dense = task(0.6, seed=1)
    for run in read_runs(shared.REPOSITORY / "assets" / "demo_model" / "karipap" / "runs"):
        if run.get("rise") is None or run["kind"] == "network" and run["method"] not in ("lowrank", "mpo", "qlr"):
            continue
        right = np.where(generator.random(200) < np.exp(-max(run["rise"], 0)), dense["correct"], 0)
        found = task(0.5) | {"correct": right.tolist(), "acc": float(right.mean())}
        between = uncertainty.paired_bootstrap(np.subtract(right, dense["correct"]))
        found["difference"] = {"mean": between.mean, "low": between.low, "high": between.high, "items": 200}
        run |= {"tasks": {TASK: found}, "dense": run["dense"] | {"tasks": {TASK: dense}}}
        if run["method"] != "mpo":
            run |= {"rise_low": run["rise"] - 2 * run["rise_error"], "rise_high": run["rise"] + 2 * run["rise_error"]}
        write_json(runs / run["id"] / "run.json", {key: value for key, value in run.items() if key != "path"})
    # The calibration as it was before any run was held against it: there is something to refit.
    shipped = next((shared.REPOSITORY / "assets" / "demo_model" / "karipap" / "calibration").glob("loss-*.json"))
    workspace = Workspace(root / "workspace")
    home = workspace.calibration_file(workspace.key_of(run["model"]), shipped.stem)
    write_json(home, read_json(shipped) | {"checks": [], "history": []})
    with shared.dashboard(shared.REPOSITORY / "app.py", root) as address:
        yield address, root


@pytest.fixture(scope="module")
def written(place):
    """The report of these runs, as the verb writes it."""
    file = place[1] / "report" / "report.html"
    return report(
        [
            place[1] / "workspace" / "runs" / run.parent.name
            for run in sorted((place[1] / "workspace" / "runs").glob("*/run.json"))
        ],
        file,
    ) | {"file": file}


def test_bars_published_points_and_their_sources(browser, place):
    with shared.Reader(browser, place[0]) as reader:
        page = reader.open("/tradeoff")
        chart = page.locator(".st-key-curve")
        chart.locator("path.yerror").first.wait_for(state="attached")
        bars = chart.locator("path.yerror").count()
        assert bars > 10, "every point with an interval has a bar"
        assert "Bars: 95 % intervals" in reader.text()
        assert "before intervals were kept" not in reader.text(), "all that ships has them"
        assert "With no measurable difference to dense" not in reader.text(), "one line, the rest is folded"
        page.get_by_text("All comparisons").click()
        page.get_by_text("With no measurable difference to dense").wait_for()
        markers = chart.locator(".scatterlayer .point").count()
        page.get_by_text("Published points").click()
        reader.still()
        page.get_by_text("published, not measured here").first.wait_for()
        assert chart.locator(".scatterlayer .point").count() >= markers + 21
        assert "published=True" in page.url
        sources = page.locator("#published")
        assert "LLaMA-2-7B" in sources.inner_text() and sources.get_by_role("link").count() >= 5
        page = reader.open("/tradeoff?published=True&y=kl")  # no published point has a divergence
        assert page.locator("#published").count() == 0
    assert not reader.complaints


def test_a_task_is_an_axis(browser, place):
    with shared.Reader(browser, place[0], color_scheme="dark") as reader:
        page = reader.open(f"/tradeoff?y={TASK}: acc")
        page.locator(".st-key-curve path.yerror").first.wait_for(state="attached")
        words = page.locator(".st-key-curve .annotation").all_text_contents()
        assert any("chance 25.0%" in each for each in words) and any("dense 60.0%" in each for each in words)
        assert page.locator(".st-key-curve path.yerror").count() > 20
        assert f"By {TASK}: acc" in reader.text() and "200 items, 0 shots" in reader.text()
    assert not reader.complaints


def test_a_refit_is_a_new_version(browser, place):
    with shared.Reader(browser, place[0]) as reader:
        page = reader.open("/tradeoff?show=predictions")
        assert "predictions by the curve were off by" in reader.text()
        assert page.locator(".st-key-predicted .scatterlayer .point").count() > 20
        before = page.locator("h3", has_text="Calibration, version").inner_text()
        page.get_by_role("button", name="Refit from").click()
        page.get_by_text("Every measured run is in this fit").wait_for()
        reader.still()
        after = page.locator("h3", has_text="Calibration, version").inner_text()
        assert int(after.split()[-1]) == int(before.split()[-1]) + 1
        page = reader.open("/plan")
        assert f"(calibration v{after.split()[-1]}, for" in reader.text()
        assert page.get_by_text("Predictions are off by").count()
    assert not reader.complaints


def test_two_runs_are_compared_and_the_report_is_there_to_take(browser, place):
    with shared.Reader(browser, place[0]) as reader:
        page = reader.open("/compare")
        assert "A keeps" in reader.text() and page.get_by_text("Figures", exact=True).count()
        with page.expect_download() as download:
            page.get_by_role("button", name="Download the report").click()
        assert download.value.suggested_filename.startswith("karipap-")
    assert not reader.complaints


@pytest.mark.parametrize(("width", "scheme"), [(420, "dark"), (1400, "light")])
def test_the_report_opens_from_the_disk_without_a_network(browser, written, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page, asked, complaints = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(written["file"].as_uri())
    page.wait_for_function(
        "[...document.querySelectorAll('.drawing')].filter(e => e.offsetParent)"
        ".every(e => e.querySelector('.main-svg'))"
    )
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == [] and len(asked) >= 1
    assert [url for url in asked if url.startswith("file:")] == [written["file"].as_uri()]
    assert complaints == []
    headings = page.locator("h2, h3").all_inner_texts()
    assert {"Benchmark tasks", "Predictions", "Reproduce", "Data", "Environment", "Published points"} <= set(headings)
    assert page.locator("path.yerror").count() > 10
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    context.close()


def test_the_report_is_valid_html_and_its_tables_hold_everything(written):
    text = written["file"].read_text().replace(report_html.plotly_js(), "")
    html5lib.HTMLParser(strict=True).parse(text)
    document = json.loads((written["file"].with_suffix(".json")).read_text())
    assert document["tasks"] == {f"{TASK}: acc": True, f"{TASK}: acc_norm": True}
    assert document["predictions"]["figures"]["plans"] > 10 and len(document["predictions"]["pairs"]) > 20
    assert any(row["what"].startswith("task") and row["name"] == TASK for row in document["data"])
    assert f"{TASK}: acc, low" in written["file"].with_suffix(".csv").read_text().splitlines()[0]
    assert all(f"--tasks {TASK}" in entry["command"] for entry in document["commands"])
