"""The Sensitivity page through Streamlit's AppTest."""

import html
import json

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.plan.document import model_entry
from karipap_core.studies.sensitivity import foretell, store
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import write_json
from tests.helpers import app_page
from tests.helpers.app_page import words

pytestmark = pytest.mark.usefixtures("only_llama")


def opened(**query) -> AppTest:
    return app_page.opened_on_tiny("pages/sensitivity.py", 60, query)


def measured(llama_roots, quality: str = "rise", network: str = "lowrank", of: int | None = None, layers: bool = True):
    """A document as `sensitivity` keeps it, with made-up numbers: rises that follow the functional error alone."""
    checkpoint = open_checkpoint(llama_roots / "tiny")
    generator, rows = np.random.default_rng(3), []
    for weight in [weight for weight in checkpoint.weights if weight.compressible][:of]:
        error = float(generator.lognormal(-4, 1))
        row = {
            "name": weight.name,
            "layer": weight.layer,
            "role": weight.role,
            "members": [weight.name],
            "network": network,
            "shape": list(weight.shape),
            "chi": 8,
            "kept": 0.4,
            "rise": None,
            "rise_low": None,
            "rise_high": None,
            "kl": None,
            "top1_agreement": None,
            "loss": None,
            "relative_error": None,
            "seconds": 0.1,
        }
        row |= {key: float(generator.lognormal()) for key in foretell.MEASURES} | {"functional_error": error}
        if quality == "rise":
            row |= {
                "rise": error - 0.003,
                "rise_low": error - 0.008,
                "rise_high": error + 0.005,
                "kl": error,
                "top1_agreement": 0.9,
                "loss": 2 + error,
            }
        else:
            row |= {"relative_error": error}
        rows.append(row)
    whole = [row | {"name": f"layer {k}", "layer": k, "role": None, "chi": None} for k, row in enumerate(rows[:2])]
    kept = {"network": network, "kept": 0.4, "chi": None, "quantize": None, "metric": "loss", "window": None}
    kept |= {"text": {"name": "a <b>text</b>", "sha256": "0"}, "stride": None, "max_tokens": 99, "calibration": {}}
    total = {"weight": 14} | ({"layer": 2} if layers else {})
    document = {
        "format": store.FORMAT,
        "version": store.VERSION,
        "created": 1.0 + (network == "mpo"),
        "by": "weight",
        "model": model_entry(checkpoint),
        "settings": kept,
        "quality": quality,
        "total": total,
        "weights": rows,
        "layers": whole if layers else [],
        "dense": {"tokens": 99},
        "skipped": [],
        "environment": {},
    }
    folder = Workspace().model_dir(checkpoint.key)
    write_json(store.file_of(folder, kept), document)
    return document


def test_nothing_measured_says_what_to_do():
    app = opened()
    assert "Nothing measured on this model yet" in app.info[0].value


def test_a_measurement_is_shown_whole(llama_roots):
    document = measured(llama_roots)
    app = opened()
    said = html.unescape(words(app).replace('</p><p class="k-note">', " "))
    assert foretell.described(document)["verdict"] in said
    table = app.dataframe[0].value
    assert table["measure"].tolist() == [foretell.MEASURES[key].label for key in foretell.MEASURES]
    best = table.set_index("measure").loc["Output error"]
    assert best["rho"] == pytest.approx(1) and best["says"] == "yes"
    assert len(app.dataframe[1].value) == 14 and len(app.get("plotly_chart")) == 4
    assert len(app.get("download_button")) == 2
    most = max(document["weights"], key=lambda row: row["rise"])["name"]
    assert app.query_params["weight"] in (most, [most]) and most in words(app)


def test_the_weight_of_the_url_is_opened_and_the_measure_chosen(llama_roots):
    document = measured(llama_roots)
    app = opened(weight=document["weights"][4]["name"], sens_measure="excess")
    assert document["weights"][4]["name"] in words(app)
    assert app.selectbox(key="sens_measure").value == "excess"
    chart = json.loads(app.get("plotly_chart")[1].proto.spec)
    assert "ρ = " in chart["layout"]["title"]["text"]
    app = opened(weight="<script>", sens_measure="../..")
    assert app.selectbox(key="sens_measure").value == "entropy"


def test_layers_can_be_shown_instead(llama_roots):
    measured(llama_roots)
    app = opened(unit_shown="layer")
    assert "2 layers measured" in words(app) and len(app.dataframe[0].value) == 2


def test_the_newest_is_shown_first_and_others_can_be_chosen(llama_roots):
    measured(llama_roots)
    measured(llama_roots, network="mpo", of=5, layers=False)
    app = opened()
    box = app.selectbox(key="measurement")
    assert "mpo" in box.value and len(box.options) == 2
    assert any("5 of 14 measured so far" in caption.value for caption in app.caption)
    other = next(name for name in (f"{option}" for option in box.options) if "lowrank" in name)
    box.select(other).run()
    assert not app.exception and len(app.dataframe[1].value) == 14


def test_an_encoders_output_error(llama_roots):
    measured(llama_roots, "relative_error", layers=False)
    app = opened()
    assert "output error" in words(app) and not app.exception


def test_a_measurement_starts_as_a_job(llama_roots, monkeypatch):
    started = []
    monkeypatch.setattr(
        "pages.parts.job.start", lambda argv, *more: argv[0] == "profile" or started.append((argv, more[1]))
    )
    app = opened(sens_network="mpo", sens_by="layer", sens_kept="0.3", sens_tokens="2048", sens_format="int8")
    app.button(key="sens_start").click().run()
    source = str(llama_roots / "tiny")
    assert started == [
        (
            [
                "sensitivity",
                source,
                "--network",
                "mpo",
                "--kept",
                "0.3",
                "--metric",
                "loss",
                "--by",
                "layer",
                "--quantize",
                "int8",
                "--max-tokens",
                "2048",
            ],
            "sensitivity_job",
        )
    ]
    app = opened(sens_network="tree", sens_size="chi")
    app.button(key="sens_start").click().run()
    assert started[1][0][4:6] == ["--chi", "32"] and "weight" in started[1][0]
