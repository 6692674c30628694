"""Every page opens while the workspace is full of bad documents: a dozen of each format beside a good one."""

import copy
import json
import os

import pytest
from streamlit.testing.v1 import AppTest

from karipap_core import schemas
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.plan.document import Plan, measured_model, model_entry
from karipap_core.profiles.build import build_profile
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import write_json
from tests.helpers import app_page
from tests.helpers.points import LEAST

PAGES = ("profile", "plan", "run", "tradeoff", "compare", "autopilot", "heal", "sensitivity", "claims", "deploy")
PAGES += ("checklist", "networks", "physics")
WRONG = ([], {}, "word", -1, 10**300, True, None, 0.5, [[]], {"a": 1})


def bad_texts(good: dict) -> list[str]:
    """What may stand in a document's place: other JSON, none, and the document with each of its fields wrong."""
    texts = ["", "{", "[]", "null", "{}", '"a"', "[" * 63 + "]" * 63, '{"a": 1, "a": 2}', '{"a": 1e400}', "\x00"]
    for name in good:
        rest = {key: value for key, value in good.items() if key != name}
        texts += [json.dumps(rest | {name: wrong}) for wrong in WRONG] + [json.dumps(rest)]
    return texts


@pytest.fixture
def full(tiny_llama):
    """A workspace with a good run and a good plan, and hundreds of bad files of each kind."""
    checkpoint, workspace = open_checkpoint(tiny_llama), Workspace()
    plan = Plan(model_entry(checkpoint), "loss", {}, predicted={"kept": 0.9, "rise": 0.01}).to_json()
    run = LEAST | {
        "format": "karipap-run",
        "version": 1,
        "id": "good",
        "created": 1e9,
        "method": "lowrank",
        "kept": 0.5,
    }
    run |= {"model": measured_model(checkpoint), "plan": plan, "predicted": plan["predicted"], "label": "the good one"}
    run |= {"rise": 0.1, "loss": 2.1, "perplexity": 8.0, "bits_per_byte": 1.0, "kl": 0.1, "top1_agreement": 0.9}
    run |= {"dense": {"loss": 2.0}, "text": {"name": "t", "sha256": "s"}, "tokens": 9, "window": 4, "stride": 2}
    home = workspace.model_dir(checkpoint.key)
    spectra = build_profile(checkpoint, device="cpu")
    spectra.save(workspace.profile_dir(checkpoint.key, "good"))
    calibration = {
        "metric": "loss",
        "measure": "kl",
        "text": {},
        "dense_loss": 2.0,
        "levels": {},
        "plans": [],
        "checks": [],
    }
    sensitivity = {"format": "karipap-sensitivity", "version": 1, "created": 1.0, "model": run["model"], "settings": {}}
    claim = {
        "format": "karipap-claim",
        "version": 1,
        "claim": "depth",
        "model": run["model"],
        "charts": [],
        "table": {},
    }
    autopilot = {
        "format": "karipap-autopilot",
        "version": 1,
        "key": "k",
        "state": "done",
        "model": run["model"],
        "log": [],
    }
    job = {"title": "t", "argv": [], "program": ["x"], "cwd": "/", "state": "running", "queued": 1.0}
    draft = {"fingerprint": checkpoint.fingerprint, "network": "lowrank", "chi": {}}
    places = {
        "runs/{}/run.json": run,
        "plans/{}.json": plan,
        "autopilot/{}/autopilot.json": autopilot,
        "jobs/2026{}/job.json": job,
        "drafts/20260101-000000-{:0>6}.json": draft,
    }
    models = {
        "profiles/{}/profile.json": spectra.document,
        "calibration/loss-{}.json": calibration,
        "sensitivity/lowrank-{}.json": sensitivity,
        "claims/{}.json": claim,
    }
    for root, kinds in ((workspace.root, places), (home, models)):
        for place, good in kinds.items():
            for number, text in enumerate(bad_texts(copy.deepcopy(good))):
                # Each its own id, else a run would hide behind another of the same one.
                file = root / place.format(number)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text.replace('"good"', f'"bad-{number}"'), "utf-8")
            folder, pipe = root / place.format("folder"), root / place.format("pipe")
            folder.mkdir(parents=True)
            pipe.parent.mkdir(parents=True, exist_ok=True)
            os.mkfifo(pipe)
    write_json(workspace.runs_dir / "good" / "run.json", run)
    return workspace.keep_plan(plan, "good")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens_beside_bad_documents(full, page):
    app = AppTest.from_file(app_page.APP, default_timeout=120)
    app.query_params["model"] = "tiny"
    app.run().switch_page(f"pages/{page}.py")
    app.query_params["model"] = "tiny"
    app.run()
    assert not app.exception and not app.error, [each.value for each in (*app.exception, *app.error)]
    said = app_page.words(app, ("markdown", "caption", "subheader"))
    if page in ("run", "tradeoff", "compare"):
        assert "run.json: " in said, "why files were passed over"
    if page == "tradeoff":
        assert "the good one" in list(app.dataframe[0].value["label"])


def test_each_schema_is_a_schema_and_knows_the_networks_that_there_are():
    import jsonschema

    from karipap_core.plan.document import LISTED

    for file in schemas.FOLDER.glob("*.schema.json"):
        jsonschema.Draft202012Validator.check_schema(json.loads(file.read_text("utf-8")))
    entry = schemas.load("plan")["$defs"]["entry"]
    assert set(entry["if"]["properties"]["network"]["enum"]) == set(LISTED)
