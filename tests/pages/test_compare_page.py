"""The Compare page through Streamlit's AppTest."""

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.plan.document import Plan, model_entry
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import write_json
from tests.helpers import app_page
from tests.helpers.app_page import words
from tests.helpers.points import entry, run

pytestmark = pytest.mark.usefixtures("only_llama")


def opened(**query) -> AppTest:
    return app_page.opened_on_tiny("pages/compare.py", 60, query)


def test_nothing_to_compare_says_what_to_do():
    assert "Nothing to compare yet" in opened().info[0].value


def test_two_runs_a_plan_and_the_dense_model(llama_roots):
    checkpoint = open_checkpoint(llama_roots / "tiny")
    whole = model_entry(checkpoint)
    weights = [weight for weight in checkpoint.weights if weight.compressible]
    small, large = (Plan(whole, "weight", {w.name: entry(*w.shape, chi) for w in weights}) for chi in (2, 4))
    noise = np.random.default_rng(0).normal(0.1, 0.3, 100)
    small.save(Workspace().plan_file("small"))
    for name, plan, rises in (("r1", small, noise + 0.1), ("r2", large, noise)):
        write_json(Workspace().runs_dir / name / "run.json", run(name, plan, rises, model=whole))
    app = opened(a="run:r1", b="run:r2")
    assert "The loss of B is 0.1000 nats a token below A" in words(app)
    figures, table = app.dataframe[0].value, app.dataframe[1].value
    assert figures[figures["figure"].str.startswith("loss")]["better"].item() == "B"
    assert len(table) == len(weights) and (table["change"] > 0).all()
    assert "2 measured models" in words(app) and len(app.get("download_button")) == 3
    same = opened(a="plan:small", b="run:r1")
    assert "Both make the same of every weight" in words(same)
    dense = opened(a="dense", b="run:r2")
    assert "A keeps 100.0% of the bytes" in words(dense)
    assert "choose two" in opened(a="dense", b="dense").info[0].value


def test_the_url_is_not_trusted(llama_roots):
    checkpoint = open_checkpoint(llama_roots / "tiny")
    Plan(model_entry(checkpoint), "weight", {}).save(Workspace().plan_file("whole"))
    app = app_page.at("pages/compare.py", 60, {"a": "run:../../etc/passwd", "b": "plan:<script>"})
    assert not app.exception and [error.value.replace("\\", "") for error in app.error] == [
        "The plan or run run:../../etc/passwd is gone: choose another.",
        "The plan or run plan:<script> is gone: choose another.",
    ]
