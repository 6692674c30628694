"""The Deploy page through Streamlit's AppTest, and its figures against the numbers that they draw."""

import json
import shlex

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli import frame as cli  # noqa: F401  (verbs fills cli.VERBS)
from karipap_core.deployment import hardware, kv
from karipap_core.deployment.decide import deploy
from karipap_core.deployment.footprint import of_config
from karipap_core.deployment.request import Load, Machine
from karipap_core.figures import deploy as figures_deploy
from karipap_core.plan.document import Plan, model_entry
from karipap_core.workspace import Workspace
from karipap_core.workspace.runs import RUN_FORMAT, RUN_VERSION
from tests.helpers import app_page, configs
from tests.helpers.app_page import words

pytestmark = pytest.mark.usefixtures("only_llama")


@pytest.fixture(autouse=True)
def no_cuda(monkeypatch):
    monkeypatch.setattr(hardware, "detect", lambda: None)


def opened(**query) -> AppTest:
    return app_page.opened_on_tiny("pages/deploy.py", 60, query)


def test_the_verdict_comes_first_and_says_what_was_not_measured():
    app = opened(gpu="L4")
    text = words(app)
    assert "Deploy it dense" in text and "of 21.6 GB on one L4" in text
    assert text.index("Deploy it dense") < text.index(">Nothing beyond the engine.</td>")
    assert text.count("not measured</i>") == 4
    assert "No evidence" in text and "<code>karipap profile" in text
    assert "Published, not measured here." in text and "$0.71" in text
    assert len(app.get("plotly_chart")) == 2


def test_the_url_carries_the_load_and_refuses_nonsense():
    app = opened(gpu="H100 PCIe", tokens="100", batch="3", kv="int8", fixed="fixed")
    assert "100 tokens × 3, int8" in words(app) and "The checkpoint is fixed" in words(app)
    app = opened(gpu="abacus", tokens="-5", batch="many", kv="<b>")
    assert app.selectbox(key="gpu").value == "H100 SXM"
    assert [app.number_input(key=key).value for key in ("tokens", "batch")] == [256, 8]  # the model has 256 positions
    app.number_input(key="batch").set_value(5).run()
    assert app.query_params["batch"] == "5" and "256 tokens × 5" in words(app)


def test_sparse_attention_opens_the_slider_of_tokens_kept(llama_roots):
    app = opened(gpu="L4", tokens="200")
    assert not any(slider.key == "keep" for slider in app.select_slider)
    app.toggle(key="sparse").set_value(True).run()
    app.select_slider(key="keep").set_value(50).run()
    kept = deploy(llama_roots / "tiny", Load(200, 8, keep=0.5, sparse=True), Machine("L4"))["kv_bytes"]
    assert f"<dd>{kept / 1e3:.3g} kB</dd>" in words(app)


def test_generations_ask_their_own_question():
    for gpu, shown in (("L4", {"fp8_benchmarked"}), ("B200", {"fp4_validated"}), ("H200", set()), ("A40", set())):
        keys = {toggle.key for toggle in opened(gpu=gpu).toggle}
        assert keys & {"fp8_benchmarked", "fp4_validated"} == shown
    app = opened(gpu="L4")
    assert "Quantization by GPU generation: int8" in words(app)
    app.toggle(key="fp8_benchmarked").set_value(True).run()
    assert "Quantization by GPU generation: fp8" in words(app)


def test_a_plan_its_run_and_a_price_fill_the_table(llama_roots):
    checkpoint = open_checkpoint(llama_roots / "tiny")
    weights = {
        weight.name: {
            "network": "lowrank",
            "out": [weight.shape[0]],
            "in": [weight.shape[1]],
            "chi": [2],
            "quantize": None,
        }
        for weight in checkpoint.weights
        if weight.compressible
    }
    plan = Plan(model_entry(checkpoint), "weight", weights)
    plan.save(Workspace().plan_file("small"))
    Workspace().new_run(
        {
            "format": RUN_FORMAT,
            "version": RUN_VERSION,
            "kind": "network",
            "method": "lowrank",
            "label": "the run",
            "model": model_entry(checkpoint),
            "bytes": 10,
            "kept": 0.5,
            "bytes_kept": 0.5,
            "rise": 1.2345,
            "plan": plan.to_json(),
            "text": {"name": "<script>", "sha256": "1" * 64},
            "dense": {"loss": 2.0},
        }
    )
    app = opened(gpu="L4", deploy_plan="small")
    app.number_input(key="price").set_value(3.6).run()
    app.number_input(key="throughput").set_value(1000.0).run()
    text = words(app)
    assert "measured: +1.2345" in text and "<script>" not in text and "&lt;script&gt;" in text
    assert "under the plan" in text and "1<small>typed throughput</small>" in text and "<dd>$1</dd>" in text
    assert "at least: peak bandwidth" in text


def test_the_command_below_gives_the_same_document(llama_roots, monkeypatch, capsys):
    app = opened(gpu="A100 80GB SXM", tokens="100", batch="3", kv="fp8", fixed="free to choose")
    words_ = shlex.split(app.code[-1].value)
    assert words_[:2] == ["karipap", "deploy"]
    monkeypatch.chdir(llama_roots)
    assert cli.main([*words_[1:], "--json", "--progress", "off"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] in words(app) and document["load"]["kv_dtype"] == "fp8"


def test_configs_of_other_models_are_taken_and_bad_ones_refused():
    app = opened(gpu="L4")
    mixtral, qwen = (json.dumps(config).encode() for config in (configs.MIXTRAL_8X7B, configs.QWEN_2_5_05B))
    app.file_uploader(key="config_instead").upload("mixtral.json", mixtral, "application/json").run()
    app.file_uploader(key="config_smaller").upload("qwen.json", qwen, "application/json").run()
    text = words(app)
    assert not app.exception and not app.error
    assert "<b>mixtral.json</b>" in text and "a token passes 28% of them" in text
    assert "qwen.json, 494,032,768 parameters in bfloat16" in text
    app.file_uploader(key="config_smaller").upload("bad.json", b"[]", "application/json").run()
    assert "bad.json holds a list, not an object" in words(app) + app.error[0].value


def test_the_memory_figure_draws_the_documents_bytes():
    foot = of_config(configs.MIXTRAL_8X7B, "mixtral")
    document = deploy(foot, Load(8192, 4), Machine("A100"))
    figure = figures_deploy.memory(document)
    assert list(figure.data[0].y) == ["quantization only", "dense"]  # the recommended way is the first
    drawn = np.sum([bar.x for bar in figure.data], axis=0)
    assert drawn == pytest.approx([document["ways"][1]["total_bytes"] / 1e9, document["total_bytes"] / 1e9])
    assert figure.data[1].x == pytest.approx([document["kv_bytes"] / 1e9] * 2)
    assert figure.layout.shapes[0].x0 == pytest.approx(72.0)
    tiny = deploy(of_config(configs.QWEN_2_5_05B), Load(10), Machine("B200"))
    small = figures_deploy.memory(tiny)
    assert not small.layout.shapes  # the end of the GPU lies far outside
    assert small.data[0].x[0] == pytest.approx(2 * 494.032768) and "in MB (10⁶ bytes)" in small.layout.xaxis.title.text


def test_the_cache_figure_draws_the_caches_bytes():
    foot = of_config(configs.LLAMA_3_8B, "llama")
    document = deploy(foot, Load(8192, 4, "fp8"), Machine("H100"))
    figure = figures_deploy.cache(kv.cache_of(foot.config), document, 32768)
    names = [line.name for line in figure.data]
    assert names == ["fp16", "fp8", "int4", "this load"]
    fp16 = figure.data[0]
    assert fp16.y == pytest.approx(131_072 * 4 * np.asarray(fp16.x) / 1e9, rel=1e-5)
    assert max(fp16.x) == 32768 and figure.data[3].y[0] == pytest.approx(document["kv_bytes"] / 1e9)
    room = document["usable_bytes"] - document["weights_bytes"] - document["activation_bytes"]
    assert figure.layout.shapes[0].y0 == pytest.approx(room / 1e9)
