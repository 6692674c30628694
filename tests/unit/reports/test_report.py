"""The report: valid HTML that fetches nothing and draws in a browser, and tables beside it that say the same."""

import csv
import json
import shlex
from html.parser import HTMLParser

import html5lib
import numpy as np
import pytest

from karipap_core.cli import frame as cli
from karipap_core.cli.frame import build_parser
from karipap_core.errors import InputError
from karipap_core.plan.document import Plan
from karipap_core.reports import html as report_html
from karipap_core.reports.report import collect, commands, describe, profile_of, report
from karipap_core.reports.rows import rows, table_csv
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import write_json
from tests.helpers.made_up import profile
from tests.helpers.points import MODEL, ONE, TWO, run

NASTY = 'a </script><script>alert(1)</script> & "b" <b>'


@pytest.fixture
def points() -> list[dict]:
    noise = np.random.default_rng(0).normal(0.0, 0.4, 100)
    noise -= noise.mean() - 0.01
    environment = {"python": "3.11", "system": "Linux", "cpus": 2, "versions": {"torch": "2"}}
    more = {"environment": environment, "settings": {"network": "lowrank", "rule": "uniform", "budget": 0.5}}
    one = run("one", ONE, noise + 0.5, predicted={"rise": 0.4}, folder="/home/somebody/x", **more)
    two = run("two", TWO, noise, **more) | {"kept": 0.8, "bytes_kept": 0.8, "label": NASTY}
    rival = {
        "kind": "baseline",
        "method": "rtn",
        "settings": {"bits": 4},
        "plan": None,
        "bytes_kept": 0.3,
        "created": 9,
    }
    return [one, two, run("int4", ONE, noise + 0.2, **more) | rival]


@pytest.fixture
def folder(points, tmp_path):
    for point in points:
        write_json(tmp_path / "runs" / point["id"] / "run.json", point)
    return tmp_path / "runs"


def without_plotly(text: str) -> str:
    """Plotly's own 4.8 MB would take a strict parser half a minute; what could break a page is looked for by itself."""
    script = report_html.plotly_js()
    assert text.count(script) == 1
    assert "</script" not in script.lower() and "<!--" not in script and not report_html.CONTROL.search(script)
    return text.replace(script, "")


class Attributes(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links, self.ids, self.drawn = [], [], []

    def handle_starttag(self, tag, attributes) -> None:
        found = dict(attributes)
        self.links += [found[key] for key in ("src", "href", "action", "data") if key in found]
        self.ids += [found["id"]] if "id" in found else []
        self.drawn += [found["data-figure"]] if "data-figure" in found else []


def test_the_file_is_valid_html_that_fetches_nothing(folder, tmp_path):
    profile(metrics=("weight", "loss"), fingerprint=MODEL["fingerprint"]).save(
        Workspace().profile_dir(f"{MODEL['fingerprint'][:32]}-{'1' * 16}", "p")
    )
    result = report([folder], tmp_path / "report.html")
    text = without_plotly((tmp_path / "report.html").read_text("utf-8"))
    html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)
    found = Attributes()
    found.feed(text)
    assert not found.links and "default-src 'none'" in text and "@import" not in text and "url(" not in text
    assert len(set(found.ids)) == len(found.ids) and set(found.drawn) == set(found.ids)
    assert (result["runs"], result["baselines"], result["profile"]) == (2, 1, True)
    assert "<h2>Spectra</h2>" in text and "Published, not measured here." in text and "no measurable difference" in text
    assert "/home/somebody" not in text + (tmp_path / "report.json").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


@pytest.mark.parametrize("name", ["../victim/settings", "/etc/x", "..", "-o", "a/b", "a\n", 3, None])
def test_the_id_of_a_strangers_run_names_no_file(points, tmp_path, name):
    victim = tmp_path / "out" / "victim" / "settings.json"
    write_json(victim, {"mine": True})
    write_json(tmp_path / "run.json", points[0] | {"id": name})
    with pytest.raises(InputError, match="run.json: field id is "):
        report([tmp_path / "run.json"], tmp_path / "out" / "report.html")
    assert json.loads(victim.read_text()) == {"mine": True}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["victim"], "nothing was written"


def test_a_plan_in_a_run_is_read_before_it_is_written(points, tmp_path):
    write_json(tmp_path / "run.json", points[0] | {"plan": {"#!/bin/sh": 1}})
    with pytest.raises(InputError):
        report([tmp_path / "run.json"], tmp_path / "out" / "report.html")
    assert not (tmp_path / "out").exists()


def test_without_a_profile_or_a_plan_there_is_still_a_report(points, tmp_path):
    document = describe([point | {"plan": None} for point in points])
    text = without_plotly(report_html.page(document))
    html5lib.HTMLParser(strict=True).parse(text)
    assert "<h2>Spectra</h2>" not in text and "<h2>Plans</h2>" not in text
    assert profile_of(MODEL) is None and profile_of({"fingerprint": "not a fingerprint"}) is None


def test_csv_and_json_hold_everything(folder, tmp_path, points):
    report([folder], tmp_path / "report.html")
    document = json.loads((tmp_path / "report.json").read_text())
    assert [point["id"] for point in document["runs"]] == ["one", "two"]
    assert document["runs"][0]["units"] == points[0]["units"] and len(document["anchors"]["points"]) > 20
    with (tmp_path / "report.csv").open() as file:
        read = {row["id"]: row for row in csv.DictReader(file)}
    assert float(read["one"]["rise_low"]) == points[0]["rise_low"] and read["int4"]["on_front"] == "True"
    assert read["two"]["label"] == NASTY and read["one"]["text_sha256"] == "s"
    assert Plan.load(tmp_path / "report-plans" / "one.json").weights == ONE.weights
    hashes = {row["what"]: row["sha256"] for row in document["data"]}
    assert hashes["model, fingerprint of its tensors"] == MODEL["fingerprint"] and hashes["text measured on"] == "s"


def test_formulas_are_disarmed(points):
    points[0]["label"] = "=1+1"
    assert ",'=1+1," in table_csv(rows(describe(points)))


def test_sentences_say_what_was_measured(points):
    first, free, near = describe(points)["summary"]
    assert first.startswith("2 networks and 1 baseline measured on t; of 2 points on the Pareto front 1 is a network.")
    assert free.startswith("The smallest model with no measurable difference") and "80.0%" in free
    assert near.startswith("The smallest network within 3 %") and "80.0%" in near
    assert "No network measured here stays within 3 %" in describe([points[0]])["summary"][-1]


def test_runs_measured_in_two_ways_do_not_share_a_chart(points):
    points[1] = points[1] | {"text": {"name": "u", "sha256": "u"}}
    document = describe(points)
    assert [len(group["points"]) for group in document["groups"]] == [2, 1] and "several ways" in document["notes"][0]
    assert "<h2>Trade-off 2</h2>" in report_html.page(document)


def test_the_commands_are_commands_of_this_program(points):
    points[0]["text"] = {"name": "my text; rm -rf.txt", "sha256": "s"}
    for entry in commands(points):
        words = shlex.split(entry["command"])
        assert words[0] == "karipap"
        build_parser().parse_args(words[1:])  # exits where an option is unknown
    assert "'my text; rm -rf.txt'" in commands(points)[0]["command"]


def test_a_model_whose_name_looks_like_an_option_is_a_model_in_the_commands(points):
    for point in points:
        point["model"] = point["model"] | {"name": "--workspace=/somewhere; $(x)"}
    for entry in commands(points):
        assert build_parser().parse_args(shlex.split(entry["command"])[1:]).model == "./--workspace=/somewhere; $(x)"


def test_the_command_cuts_the_text_as_it_was(points):
    from karipap_core.evaluation.perplexity import cut

    # Two openers in each window are fed in but not scored: the count of tokens is less than what was asked for.
    for n, window, stride, asked in ((5000, 64, 32, 1024), (5000, 64, 64, 640), (300, 128, 16, 200)):
        windows = cut(n, window, stride, asked)
        scored = sum(w.length - w.skip for w in windows) - min(2, stride - 1)
        assert cut(n, window, stride, scored + stride - 1) == windows


def test_what_is_no_run_is_refused(points, tmp_path):
    ONE.save(tmp_path / "plan.json")
    write_json(
        tmp_path / "other.json", points[0] | {"id": "other", "model": MODEL | {"fingerprint": "cd" * 32, "name": "m2"}}
    )
    write_json(tmp_path / "one.json", points[0])
    for what, says in (
        ([tmp_path / "plan.json"], "is a karipap-plan"),
        (["nothing"], "no file or folder"),
        (["../x"], "not exist"),
        ([tmp_path / "one.json", tmp_path / "other.json"], "about one model"),
        ([], "at least one"),
    ):
        with pytest.raises(InputError, match=says):
            collect(what)
    with pytest.raises(InputError, match="ends in .html"):
        report([tmp_path / "one.json"], tmp_path / "report.pdf")


def test_runs_are_found_by_name_and_counted_once(points, tmp_path):
    write_json(Workspace().runs_dir / "one" / "run.json", points[0])
    sweep = {"format": "karipap-sweep", "version": 1, "runs": points[:2], "baselines": points[2:]}
    write_json(tmp_path / "sweep" / "sweep.json", sweep)
    assert [point["id"] for point in collect(["one", tmp_path / "sweep"])] == ["one", "two", "int4"]


def test_the_verb_writes_the_files(folder, tmp_path, capsys):
    assert cli.main(["report", str(folder / "one"), "--out", str(tmp_path / "r.html"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["runs"] == 1 and all((tmp_path / f"r.{end}").is_file() for end in ("html", "csv", "json"))
    assert cli.main(["report", str(tmp_path / "nothing")]) == 2
