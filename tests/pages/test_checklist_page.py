"""The Production page through Streamlit's AppTest: it shows what is on disk, and its buttons start the verbs."""

import json

import pytest
from streamlit.testing.v1 import AppTest

from karipap_core.deployment.checklist import ITEMS
from karipap_core.deployment.fallback import rehearse
from karipap_core.deployment.shadow import read_prompts, shadow
from karipap_core.reading import read_json
from karipap_core.workspace import Workspace
from karipap_core.workspace.kept import keep_json, kept_json
from tests.helpers import app_page
from tests.helpers.app_page import words
from tests.helpers.folders import folder_of, plan_for


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from tests.helpers.architectures import make

    root = tmp_path_factory.mktemp("page")
    dense = make("llama", root / "models" / "tiny")
    return dense, folder_of(dense, root / "run-a" / "model")


@pytest.fixture(autouse=True)
def alone(world, monkeypatch):
    """Through app.py as on a server that has drawn a page (see app_page.py)."""
    app_page.alone_with(monkeypatch, world[0].parent)


@pytest.fixture
def run(world):
    """A run in the workspace whose folder is the compressed one."""
    plan = plan_for(world[0])
    return Workspace().new_run(
        {
            "id": "run-a",
            "kind": "network",
            "method": "lowrank",
            "label": "lowrank <b>, kept 0.8",
            "folder": str(world[1]),
            "model": plan.model,
            "plan": plan.to_json(),
            "kept": 0.8,
            "bytes_kept": 0.8,
        }
    )


def opened(**query) -> AppTest:
    return app_page.opened_on_tiny("pages/checklist.py", 60, query)


def test_without_a_folder_it_says_where_one_is_made():
    text = words(opened())
    assert "No compressed folder of this model yet" in text and "k-items" not in text.split("<style")[0]


def test_every_item_is_there_with_its_evidence_and_what_to_run(run, world):
    for kind in ("evaluation", "shadow", "fallback"):
        (world[1] / f"{kind}.json").unlink(missing_ok=True)
    app = opened(folder="run-a")
    text = words(app)
    assert all(f"<b>{name}</b>" in text for name in ITEMS)
    assert "Not ready: 4 of 8" in text and text.count("✓ green") == 4 and text.count("✗ red") == 4
    assert "no evaluation.json in the folder" in text and "--test-fallback" in text
    assert {button.key for button in app.button} >= {"fix_evaluation", "fix_fallback", "start_shadow"}
    assert "fix_verify" not in {button.key for button in app.button}


def test_the_buttons_start_the_verbs(run, world, started):
    (world[1] / "fallback.json").unlink(missing_ok=True)
    app = opened()
    app.button(key="fix_fallback").click().run()
    assert started[-1] == ["checklist", str(world[1]), "--against", str(world[0]), "--test-fallback"]
    assert app.query_params["production_job"]


def test_typed_prompts_become_a_file_that_the_verb_reads(run, world, started):
    app = opened()
    app.text_area(key="prompts").set_value('one "two"\n\n  \ndef f():').run()
    app.select_slider(key="shadow_tokens").set_value(16).run()
    app.button(key="start_shadow").click().run()
    argv = started[-1]
    assert argv[:4] == ["shadow", str(world[1]), "--against", str(world[0])] and argv[-2:] == ["--tokens", "16"]
    assert read_prompts(argv[argv.index("--prompts") + 1]) == ['one "two"', "def f():"]
    assert str(Workspace().root) in argv[argv.index("--prompts") + 1]


def test_no_prompt_and_too_many_start_nothing(run):
    app = opened()
    for typed in ("  \n", "x\n" * 65):
        app.text_area(key="prompts").set_value(typed).run()
        assert app.button(key="start_shadow").disabled


def test_texts_side_by_side_with_what_differs_marked(run, world):
    found = shadow(world[1], ["def <script>:", "x = 1"], max_new_tokens=8, device="cpu")
    text = words(opened())
    assert f"{found['kl']:.4f}" in text and "&lt;script&gt;" in text and "<script>" not in text
    parted = [row for row in found["prompts"] if row["diverges_at"] is not None]
    assert parted and f"the texts differ from token {parted[0]['diverges_at'] + 1} of 8 on" in text and "<mark>" in text
    kept = kept_json(world[1] / "shadow.json", "shadow")
    keep_json(world[1] / "shadow.json", kept | {"of": kept["of"] | {"tensors": "0" * 64}})
    assert "<b>Stale</b>" in words(opened())
    keep_json(world[1] / "shadow.json", kept)


def test_green_when_all_has_been_run(run, world):
    from karipap_core.compressed.records import record
    from karipap_core.compressed.verify import verify

    verdict = verify(world[1])
    shadow(world[1], ["x"], max_new_tokens=4, device="cpu")
    rehearse(world[1], device="cpu")
    fine = {"text": {"name": "t", "sha256": "0" * 64}, "window": 32, "tokens": 64, "rise": 0.1}
    record(world[1], "evaluation", fine, read_json(world[1] / "verify.json")["of"]["dense"])
    assert verdict["ok"]
    app = opened()
    assert "Ready: all items are green." in words(app)
    assert not any((button.key or "").startswith("fix_") for button in app.button)
    assert json.loads((world[1] / "verify.json").read_text())["result"]["ok"]
