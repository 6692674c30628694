"""The autopilot page through Streamlit's AppTest: its button starts the verb that a person could type, the log is told
while the job runs, and a finished search is shown, reopened and put on the board."""

import json
import time

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli.frame import build_parser
from karipap_core.figures import autopilot as figures_autopilot
from karipap_core.plan.document import model_entry
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import write_json
from tests.helpers import app_page


def step(number: int, **more) -> dict:
    entry = {
        "step": number,
        "did": f"Measured <b>plan</b> {number}",
        "why": "Because.",
        "id": f"point-{number}",
        "predicted": 0.02,
        "bytes_kept": 0.5 + number / 100,
        "decision": "Under the line.",
        "accepted": True,
    }
    entry |= {"measured": {"rise": 0.01 * number, "low": 0.008 * number, "high": 0.012 * number}} | more
    return entry | {"says": f"{entry['did']}. Because. {entry['decision']}"}


def document(source, key: str, state: str = "done", **more) -> dict:
    checkpoint = open_checkpoint(source)
    log = [step(1), step(2, accepted=False, decision="Over the line."), step(3)]
    tried = [
        {
            "id": each["id"],
            "label": f"lowrank <i>{each['step']}</i>",
            "bytes_kept": each["bytes_kept"],
            "predicted": 0.02,
            **each["measured"],
            "accepted": each["accepted"],
            "text": "verdict" if each["step"] == 3 else "search",
        }
        for each in log
    ]
    rival = {
        "label": "uniform, lowrank",
        "method": "lowrank",
        "id": "rival",
        "bytes_kept": 0.53,
        "rise": 0.9,
        "bytes_kept_blocks": 0.5,
        "rise_low": 0.8,
        "rise_high": 1.0,
        "difference": {"mean": 0.87, "low": 0.8, "high": 0.9},
    }
    weight = next(weight for weight in checkpoint.weights if weight.compressible)
    plan = {
        "format": "karipap-plan",
        "version": 1,
        "model": model_entry(checkpoint),
        "metric": "loss",
        "rule": "hand",
        "budget": 0.5,
        "scope": "model",
        "weights": {weight.name: {"network": "dense"}},
        "predicted": {"kept": 0.5, "rise": 0.02},
    }
    text = {"name": "a <b>text</b>", "sha256": "0", "documents": 7}
    found = {
        "format": "karipap-autopilot",
        "version": 1,
        "key": key,
        "state": state,
        "model": model_entry(checkpoint),
        "line": {"max_rise": 0.03, "max_perplexity": 0.0305, "of": "loss, nats a token"},
        "quality": "rise",
        "settings": {"networks": ["lowrank"], "quantize": None, "scope": "model"},
        "criterion": "The upper end.",
        "texts": dict.fromkeys(("search", "verdict", "calibration"), text),
        "evaluations": 2,
        "tried": tried,
        "rivals": [rival],
        "log": log,
    }
    if state == "done":
        found |= {
            "plan": plan,
            "id": "point-3",
            "bytes_kept": 0.53,
            "rise": 0.03,
            "rise_low": 0.024,
            "rise_high": 0.036,
            "perplexity": 9.0,
            "perplexity_rise": 0.0305,
            "met": True,
            "seconds": 70.0,
            "outside_uncertainty": False,
            "verdict": ["Plain <b>quantization</b> does better here.", key],
        }
    return found | more


def keep(found: dict) -> None:
    write_json(Workspace().root / "autopilot" / found["key"] / "autopilot.json", found)
    time.sleep(0.01)  # the newest by time is the first


def opened(**query) -> AppTest:
    return app_page.opened_on_tiny("pages/autopilot.py", 30, query)


def words(app: AppTest) -> str:
    return app_page.words(app, ("markdown", "caption", "subheader"))


def test_the_button_starts_the_verb_for_each_aim(tiny_llama, started):
    app = opened(evaluations="8")
    app.number_input(key="autopilot_rise").set_value(0.05).run()
    app.selectbox(key="autopilot_quantize").select("int4").run()
    app.button(key="autopilot_start").click().run()
    args = build_parser().parse_args(started[-1])
    assert (
        args.verb == "autopilot" and args.max_rise == 0.05 and args.quantize == "int4" and args.networks == ["lowrank"]
    )
    assert args.max_evaluations == 8 and args.out is None and args.text is None and args.budget_bytes is None
    assert app.button(key="autopilot_start").disabled and "autopilot_job" in app.query_params
    assert opened(autopilot_job=app.query_params["autopilot_job"]).button(key="autopilot_start").disabled  # a reload
    for aim, expected in (("perplexity", np.log(1.03)), ("bytes", None)):
        app = opened(aim=aim)
        app.button(key="autopilot_start").click().run()
        args = build_parser().parse_args(started[-1])
        assert args.max_perplexity == (expected and pytest.approx(expected)) and args.max_rise is None
        assert args.budget_bytes == (0.5 if aim == "bytes" else None)


def test_without_a_network_nothing_starts(tiny_llama, started):
    app = opened()
    app.multiselect(key="autopilot_networks").set_value([]).run()
    assert app.button(key="autopilot_start").disabled
    assert not [argv for argv in started if argv[0] == "autopilot"]  # the profile page starts its own


def test_the_log_is_told_while_the_job_runs(tiny_llama, started):
    app = opened()
    app.button(key="autopilot_start").click().run()
    keep(document(tiny_llama, "a" * 16, "running"))
    app = opened(autopilot_job=app.query_params["autopilot_job"])
    said = words(app)
    assert "Measured &lt;b&gt;plan&lt;/b&gt; 2" in said and "<em>Over the line.</em>" in said
    assert len(app.get("plotly_chart")) == 1 and "The verdict" not in said


def test_the_last_search_is_reopened_and_others_can_be_chosen(tiny_llama, started):
    keep(document(tiny_llama, "a" * 16))
    keep(document(tiny_llama, "b" * 16))
    keep(document(tiny_llama, "c" * 16, model={"name": "another", "fingerprint": "0" * 64}))
    write_json(Workspace().root / "autopilot" / "torn" / "autopilot.json", {"format": "karipap-autopilot"})
    (Workspace().root / "autopilot" / "torn2").mkdir()
    (Workspace().root / "autopilot" / "torn2" / "autopilot.json").write_text('{"format": "kari')
    app = opened()
    said = words(app)
    assert "b" * 16 in said and "a" * 16 not in said and "Plain &lt;b&gt;quantization" in said
    assert "not outside the uncertainty" in said and "a &lt;b&gt;text" in said and "<dd>53.0%</dd>" in said
    assert app.selectbox(key="autopilot").options == [
        "at most 0.03, lowrank: 53.0% kept, met",
        "at most 0.03, lowrank: 53.0% kept, met",
    ]
    assert "a" * 16 in words(opened(autopilot="a" * 16))


def test_a_damaged_search_is_passed_over_and_said_to_be_damaged(tiny_llama, started):
    keep(document(tiny_llama, "b" * 16))
    keep({key: value for key, value in document(tiny_llama, "a" * 16).items() if key != "tried"})
    said = words(opened())
    assert "b" * 16 in said and f"{'a' * 16}/autopilot.json: field tried is missing." in said


def test_the_plan_goes_to_the_board(tiny_llama, started):
    keep(document(tiny_llama, "a" * 16))
    app = opened()
    app.button(key="autopilot_board").click().run()
    file = Workspace().find_plan(f"autopilot-{'a' * 16}")
    saved = json.loads(file.read_text())
    assert saved["rule"] == "hand" and app.query_params["plan"] == file.stem


def test_the_figure_draws_every_point_with_its_interval(tiny_llama):
    found = document(tiny_llama, "a" * 16)
    drawn = {trace.name: trace for trace in figures_autopilot.search(found).data}
    assert list(drawn) == ["accepted", "not taken", "verdict, on text of its own", "rivals"]
    one = drawn["accepted"]
    assert list(one.customdata) == ["point-1"] and one.y[0] == np.float32(0.01)
    assert one.error_y.array[0] == pytest.approx(0.002) and one.error_y.arrayminus[0] == pytest.approx(0.002)
    assert drawn["rivals"].y[0] == np.float32(4 * 0.03) and "+0.9000" in drawn["rivals"].hovertext[0]  # at the edge
    assert "<b>lowrank &lt;i&gt;1" in one.hovertext[0]
    figure = figures_autopilot.search(found)
    assert figure.layout.shapes[0].y0 == 0.03 and figure.layout.yaxis.range[1] < 0.9
    sized = found | {"line": {"bytes_kept": 0.5, "scope": "model"}, "rivals": []}
    assert figures_autopilot.search(sized).layout.shapes[0].x0 == 0.5
    plain = [row | {"low": None, "high": None} for row in found["tried"]]
    assert figures_autopilot.search(sized | {"tried": plain, "quality": "relative_error"}).data
