"""The claims page through Streamlit's AppTest: what is published stands apart from what was measured, and one press
starts the verb."""

import html
import json
import shutil

import pytest
from streamlit.testing.v1 import AppTest

from karipap_core import jobs
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.figures import claims as figures_claims
from karipap_core.studies.claims.catalogue import CLAIMS
from karipap_core.studies.claims.check import result_file
from karipap_core.workspace.files import write_json
from pages.parts import model
from tests.helpers import app_page


def result(claim: str, **more) -> dict:
    keys = [row.key for row in CLAIMS[claim].published]
    return {
        "format": "karipap-claim",
        "version": 1,
        "claim": claim,
        "model": {"name": "tiny", "fingerprint": "0" * 64},
        "seconds": 3.0,
        "created": 1.7e9,
        "environment": {},
        "text": {"name": "a text <b>of mine</b>", "sha256": "0"},
        "tokens": 2048,
        "measure": "kl",
        "dense_loss": 5.0,
        "verdict": "Seen here: 7 & more.",
        "measured": {keys[0]: "ρ = +0.91"},
        "figures": {},
        "table": {"columns": ["weight", "damage"], "rows": [["a", 0.5], ["=b", 0.25]]},
        "charts": [
            {
                "kind": "lines",
                "title": "T",
                "x": "Layer",
                "y": "nats",
                "log": True,
                "series": [{"name": "q", "x": [0, 1], "y": [0.5, 0.0]}],
            },
            {
                "kind": "bars",
                "title": "B",
                "x": "",
                "y": "n",
                "log": False,
                "series": [{"name": "n", "x": ["u", "v"], "y": [3.0, 1500.0]}],
            },
        ],
        "notes": ["A note <i>here</i>."],
    } | more


def keep(folder, claim: str, document) -> None:
    write_json(result_file(open_checkpoint(folder).key, claim), document)


def opened(**query) -> AppTest:
    return app_page.opened_on_tiny("pages/claims.py", 30, query)


def words(app: AppTest) -> str:
    return app_page.words(app, ("markdown", "caption", "subheader", "code"))


@pytest.mark.parametrize("claim", CLAIMS)
def test_before_a_check_every_published_figure_stands_beside_an_empty_place(tiny_llama, claim):
    text = words(opened(claim=claim))
    for row in CLAIMS[claim].published:
        assert html.escape(row.what) in text and html.escape(row.value) in text
        assert html.escape(row.source) in text
    assert f'href="{html.escape(CLAIMS[claim].address)}"' in text
    assert text.count('class="k-none"><span>not checked yet') == len(CLAIMS[claim].published) + len(CLAIMS)
    assert 'class="k-measured"' not in text and "<th>Published</th>" in text and "<th>Measured here</th>" in text


def test_one_press_starts_the_verb_that_a_person_could_type(tiny_llama, started):
    app = opened(claim="whitening")
    assert app.button(key="check").label == "Check it here"
    assert f"claims {tiny_llama} --claim whitening" in app.code[0].value.replace(
        str(tiny_llama.resolve()), str(tiny_llama)
    )
    app.button(key="check").click().run()
    # The first page that is opened profiles a model it has not met; that is not this page's.
    assert started[-1] == ["claims", str(tiny_llama), "--claim", "whitening"]
    assert app.button(key="check").disabled and "claim_job" in app.query_params
    job = jobs.get(app.query_params["claim_job"])
    assert job.status()["argv"] == started[-1]
    again = opened(claim="depth", claim_job=job.id)  # a reload finds it, and one job runs at a time
    assert again.button(key="check").disabled


def test_other_models_stand_beside_where_the_claim_is_about_several(tiny_llama, made, started):
    shutil.copytree(made("mistral"), tiny_llama.parent / "other")
    model.found.clear()
    assert not opened(claim="whitening").multiselect
    app = opened(claim="density")
    box = app.multiselect(key="claim_beside")
    assert "other" in box.options and "tiny" not in box.options
    box.select("other").run()
    beside = ["--beside", str(tiny_llama.parent / "other")]
    assert app.code[0].value.endswith(
        " ".join(beside).replace(str(tiny_llama.parent), str(tiny_llama.parent.resolve()))
    )
    app.button(key="check").click().run()
    assert started[-1] == ["claims", str(tiny_llama), "--claim", "density", *beside]


def test_a_result_is_shown_again_on_reload_and_what_it_says_is_only_text(tiny_llama):
    keep(tiny_llama, "depth", result("depth"))
    app = opened(claim="depth")
    text = words(app)
    assert 'class="k-measured"><span>ρ = +0.91</span>' in text and "Seen here: 7 &amp; more." in text
    assert "a text &lt;b&gt;of mine&lt;/b&gt;" in text and "<i>here" not in text
    assert text.count('class="k-none"><span>not checked yet') == len(CLAIMS["depth"].published) - 1 + len(CLAIMS) - 1
    assert len(app.get("plotly_chart")) == 2 and app.button(key="check").label == "Check it again"
    assert list(app.dataframe[0].value["damage"]) == [0.5, 0.25]
    options = [option.content for option in app.segmented_control(key="claim").proto.options]
    assert options[0].endswith("✓") and not options[1].endswith("✓")


def test_another_models_result_is_not_shown(tiny_llama, made):
    keep(made("gpt2"), "depth", result("depth"))
    assert 'class="k-measured"' not in words(opened(claim="depth"))


def test_a_damaged_result_is_passed_over(tiny_llama):
    file = result_file(open_checkpoint(tiny_llama).key, "depth")
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"format": "karipap-claim", "version": 99}))
    assert "not checked yet" in words(opened(claim="depth"))


def test_a_strange_link_opens_the_first_claim(tiny_llama):
    app = opened(claim="../../etc/passwd", claim_job="<script>")
    assert app.session_state.claim == next(iter(CLAIMS)) and "claim_job" not in app.query_params


def test_charts_draw_their_numbers():
    lines, bars = (figures_claims.chart(chart) for chart in result("depth")["charts"])
    assert list(lines.data[0].y) == [0.5, 0.5] and lines.layout.yaxis.type == "log"  # 0 stands at the lowest
    assert list(bars.data[0].y) == [3, 1500] and list(bars.data[0].text) == ["3", "1,500"]
    many = {
        "kind": "points",
        "title": "M",
        "x": "Bytes kept",
        "y": "y",
        "log": False,
        "series": [{"name": str(k), "x": [1], "y": [k]} for k in range(8)],
    }
    figure = figures_claims.chart(many)
    looks = {(trace.marker.color, trace.marker.symbol) for trace in figure.data}
    sizes = figures_claims.chart(
        many | {"x": "Million parameters", "series": [{"name": "a", "x": [0.26, 135], "y": [1, 2]}]}
    )
    assert sizes.layout.xaxis.type == "log" and list(sizes.data[0].x) == [0.26, 135]
    assert len(looks) == 8 and figure.layout.xaxis.tickformat == ".0%" and figure.layout.title.text == "M"
