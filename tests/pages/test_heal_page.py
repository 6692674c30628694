"""The heal page through Streamlit's AppTest: its button starts the verb that a person could type, the curve is read
from the job's own log, and the pair of points is drawn."""

import json
import shutil
import time

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from karipap_core import jobs
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli.frame import build_parser
from karipap_core.figures import heal as figures_heal
from karipap_core.healing.settings import NAMES, ScaleSettings, settings_of
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import write_json
from tests.helpers import app_page


@pytest.fixture
def tiny(tiny_llama):
    """A model folder that the dashboard finds as the alias `tiny`, and a run of it in the workspace."""
    folder = Workspace().runs_dir / "run-0" / "model"
    write_json(folder / "config.json", {})
    keep("run-0", 0.4, tiny_llama, folder)
    return tiny_llama


def keep(name: str, rise: float, source, folder, **settings) -> None:
    sizes = dict.fromkeys(("kept", "bytes_kept", "kept_blocks", "bytes_kept_blocks"), 0.25)
    sizes |= {"window": 32, "stride": 16, "tokens": 512}
    run = {
        "format": "karipap-run",
        "version": 1,
        "id": name,
        "created": 1.7e9 + len(name),
        "kind": "network",
        "method": "lowrank",
        "label": f"lowrank {name}",
        "settings": settings,
        "rise": rise,
        "loss": 2 + rise,
        "model": {"name": "tiny", "fingerprint": open_checkpoint(source).fingerprint},
        "folder": str(folder),
        "text": {"name": "a <b>text</b>", "sha256": "0"},
        **sizes,
    }
    write_json(Workspace().runs_dir / name / "run.json", run)


def opened(**query) -> AppTest:
    return app_page.opened_on_tiny("pages/heal.py", 30, query)


def words(app: AppTest) -> str:
    return app_page.words(app, ("markdown", "caption", "subheader", "code"))


def test_the_button_starts_the_verb_and_the_same_choices_name_the_same_folder(tiny, started):
    app = opened(steps="50", rate="0.0003", objective="next-token")
    app.checkbox(key="heal_norms").check().run()
    shown = words(app)
    app.button(key="heal").click().run()
    argv = started[-1]
    args = build_parser().parse_args(argv)
    assert args.verb == "heal" and args.steps == 50 and args.rate == 3e-4 and args.norms and args.measure == ""
    assert str(args.folder) == str(Workspace().runs_dir / "run-0" / "model") and args.objective == "next-token"
    assert args.out.parent == Workspace().root / "healed" and not args.compare_dense and args.text is None
    assert "accelerate launch" in shown and "--multi_gpu" in shown and "--use_fsdp" in shown and str(args.out) in shown
    assert app.button(key="heal").disabled and "heal_job" in app.query_params
    again = opened(heal_job=app.query_params["heal_job"])  # a reload finds it
    assert again.button(key="heal").disabled


def test_scales_are_healed_by_the_same_verb_without_what_has_no_meaning_there(tiny, started):
    app = opened(way="scales", windows="32")
    assert "heal_norms" not in {box.key for box in app.checkbox} and "accelerate launch" not in words(app)
    app.button(key="heal").click().run()
    args = build_parser().parse_args(started[-1])
    assert args.verb == "heal" and args.scales and args.windows == 32 and args.steps is None and args.measure == ""
    assert settings_of(args.scales, {name: getattr(args, name) for name in NAMES}) == ScaleSettings(windows=32)


RESULT = {
    "loss_before": 3.0,
    "loss_after": 2.5,
    "dense_loss": 2.0,
    "steps": 3,
    "seconds": 4.0,
    "learning_rate": 1e-4,
    "curve": [{"step": n, "loss": 3.0 - n / 10, "rate": 1e-4} for n in (1, 2, 3)],
    "improved": True,
    "search": {},
    "dense_trained": {"loss": 1.9},
    "notes": ["A <b>note</b>."],
    "folder": "/tmp/healed",
    "points": [{"id": "run-0"}, {"id": "heal-00"}],
}


def test_a_healing_that_is_done_shows_its_figures_its_curve_and_the_pair(tiny, started):
    keep("heal-00", 0.1, tiny, "/tmp/healed", healing={"steps": 3})
    started.program = f"print({json.dumps(json.dumps(RESULT))})"
    app = opened()
    app.button(key="heal").click().run()
    job = jobs.get(app.query_params["heal_job"])
    for _ in range(200):
        if job.status()["state"] == "done":
            break
        time.sleep(0.05)
    app = opened(heal_job=job.id)
    text = words(app)
    assert "<dd>50%</dd>" in text and "<dd>1.9000</dd>" in text and "A &lt;b&gt;note" in text
    assert "a &lt;b&gt;text" in text and len(app.get("plotly_chart")) == 2  # the curve, and the pair


def test_healed_scales_show_each_block_and_the_paired_interval(tiny, started):
    keep("heal-00", 0.1, tiny, "/tmp/healed", healing={"steps": 3})
    blocks = [{"block": f"layers.{n}", "before": 0.2, "after": 0.2 - n / 10} for n in range(2)]
    change = {"mean": -0.25, "low": -0.3, "high": -0.2, "units": 12, "level": 0.95}
    found = RESULT | {"curve": [], "blocks": blocks, "change": change, "dense_trained": None, "learning_rate": None}
    started.program = f"print({json.dumps(json.dumps(found))})"
    app = opened(way="scales")
    app.button(key="heal").click().run()
    job = jobs.get(app.query_params["heal_job"])
    for _ in range(200):
        if job.status()["state"] == "done":
            break
        time.sleep(0.05)
    app = opened(heal_job=job.id)
    assert "-0.2500 (95 % interval -0.3000 to -0.2000)" in words(app) and len(app.get("plotly_chart")) == 2
    before, after = figures_heal.block_errors(blocks).data
    assert list(before.y) == [np.float32(0.2)] * 2 and list(after.y) == [np.float32(0.2), np.float32(0.1)]
    assert list(after.hovertext) == ["layers.0", "layers.1"]


def test_a_model_without_runs_asks_for_a_folder(tiny, started):
    shutil.rmtree(Workspace().runs_dir)
    app = opened()
    assert app.button(key="heal").disabled
    app.text_input(key="heal_folder").input(str(tiny)).run()
    assert not app.button(key="heal").disabled


def test_the_curve_is_read_from_a_log_with_restarts_and_a_torn_line():
    line = {"total": 9, "item": "", "seconds": 1.0}
    lines = ["--- started", "a warning", json.dumps(line | {"stage": "load", "done": 1, "message": "loss 9"})]
    for step, loss in ((1, 3.0), (2, 2.9), (3, 2.8), (2, 2.5)):
        said = f"loss {loss:.6f}" + (", validation 2.750000" if step == 3 else "")
        lines.append(json.dumps(line | {"stage": "heal", "done": step, "message": said}))
    lines += [json.dumps(line | {"stage": "dense", "done": 1, "message": "loss 1.000000"}), '{"stage": "heal", "do']
    curve = figures_heal.curve_of_log(lines)
    assert curve == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}, {"step": 3, "loss": 2.8, "validation": 2.75}]
    assert figures_heal.curve_of_log(lines, "dense") == [{"step": 1, "loss": 1.0}]
    assert figures_heal.curve_of_log([]) == []


def test_figures_draw_their_numbers():
    curve = [{"step": n, "loss": float(n)} for n in range(1, 31)] + [{"step": 31, "loss": 31.0, "validation": 2.5}]
    dots, mean, looks = figures_heal.loss_curve(curve, before=3.0, dense=2.0).data
    assert list(dots.y) == [point["loss"] for point in curve] and list(looks.y) == [3.0, 2.5]
    assert list(looks.x) == [0, 31]
    values = np.array([point["loss"] for point in curve])
    expected = [values[max(0, n - 19) : n + 1].mean() for n in range(len(values))]
    assert np.allclose(mean.y, expected)
    assert len(figures_heal.loss_curve([{"step": n, "loss": 1.0} for n in range(5000)]).data[0].y) == 512
    before, after = ({"id": i, "bytes_kept": 0.25, "rise": rise, "label": i} for i, rise in (("a", 0.4), ("b", 0.1)))
    others = [before, after, {"id": "c", "bytes_kept": 0.5, "rise": 0.2, "label": "c"}]
    drawn = figures_heal.moved(before, after, others)
    assert [list(trace.y) for trace in drawn.data] == [
        [np.float32(0.2)],
        [np.float32(0.4)],
        [np.float32(0.1)],
    ]
    arrow = drawn.layout.annotations[0]
    assert (arrow.ay, arrow.y) == (0.4, 0.1) and arrow.x == arrow.ax
