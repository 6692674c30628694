"""DenseFallback: one switch, both models, no restart; and the rehearsal that is kept as evidence."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.deployment.fallback import SWITCH, DenseFallback, rehearse
from karipap_core.errors import InputError
from karipap_core.layers.linear import TensorNetworkLinear
from karipap_core.models.load import load_model
from karipap_core.reading import read_json
from tests.helpers.folders import folder_of
from tests.helpers.paths import REPOSITORY


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from tests.helpers.architectures import make

    root = tmp_path_factory.mktemp("fallback")
    model = make("llama_bf16", root / "model")
    return model, folder_of(model, root / "out")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)


def networks(model) -> int:
    return sum(isinstance(module, TensorNetworkLinear) for module in model.modules())


def test_the_variable_and_the_argument_choose(world, monkeypatch):
    fallback = DenseFallback(world[1])
    compressed, tokenizer = fallback.load()
    assert networks(compressed) == 8 and tokenizer is not None and compressed.dtype == torch.bfloat16
    assert fallback.load()[0] is compressed, "loaded once"
    monkeypatch.setenv(SWITCH, "dense")
    dense, _ = fallback.load()
    assert fallback.use == "dense" and networks(dense) == 0 and dense.dtype == torch.bfloat16
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(dense(ids).logits, load_model(world[0], dtype=torch.bfloat16)[0](ids).logits)
    monkeypatch.setenv(SWITCH, "compressed")
    assert networks(fallback.load()[0]) == 8
    fallback.switch("dense")  # stronger than the variable
    assert networks(fallback.load()[0]) == 0
    fallback.switch(None)
    assert fallback.use == "compressed"
    assert DenseFallback(world[1], use="dense").use == "dense"


def test_both_are_kept_only_where_asked_for(world):
    keeping = DenseFallback(world[1], keep=True)
    first = keeping.load()[0]
    keeping.switch("dense")
    keeping.load()
    keeping.switch("compressed")
    assert keeping.load()[0] is first
    letting_go = DenseFallback(world[1])
    first = letting_go.load()[0]
    letting_go.switch("dense")
    letting_go.load()
    letting_go.switch("compressed")
    assert letting_go.load()[0] is not first


def test_a_fallback_that_would_not_work_is_refused_at_the_start(world, made, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no fallback for it"):
        DenseFallback(world[1], made("llama"))
    with pytest.raises(InputError, match="not one of"):
        DenseFallback(world[1], use="both")
    monkeypatch.setenv(SWITCH, "Dense!")
    with pytest.raises(InputError, match=SWITCH):
        DenseFallback(world[1]).load()
    with pytest.raises(InputError):
        DenseFallback(world[1], tmp_path / "nowhere")


def test_a_dense_model_that_changes_while_we_serve_is_not_loaded(world, tmp_path):
    dense = Path(shutil.copytree(world[0], tmp_path / "dense"))
    fallback = DenseFallback(world[1], dense)
    tensors = load_file(dense / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    fallback.switch("dense")
    with pytest.raises(InputError, match="no fallback for it"):
        fallback.load()


def test_a_rehearsal_goes_through_the_switch_and_is_kept(world, monkeypatch):
    monkeypatch.setenv(SWITCH, "compressed")
    found = rehearse(world[1], device="cpu")
    assert found["ok"] and [check["name"] for check in found["checks"]] == [
        "dense checkpoint",
        "compressed serves",
        "switch to dense",
        "switch back",
        "dense by argument",
    ]
    kept = read_json(world[1] / "fallback.json")
    assert kept["result"] == found and kept["of"]["dense"] == open_checkpoint(world[0]).fingerprint
    assert os.environ[SWITCH] == "compressed", "the environment is as it was"


def test_a_switch_that_does_nothing_fails_the_rehearsal(world, monkeypatch):
    monkeypatch.setattr(DenseFallback, "use", "compressed")
    found = rehearse(world[1], device="cpu")
    assert not found["ok"]
    assert "switch to dense" in [check["name"] for check in found["checks"] if not check["ok"]]


def another_answer(model) -> None:
    model.lm_head.weight.neg_()


def a_little_off(model) -> None:
    """One weight of one layer: no answer of the probe changes for it."""
    model.model.layers[0].self_attn.q_proj.weight[0, 0] += 0.01


def not_finite(model) -> None:
    model.model.norm.weight.fill_(float("nan"))


@pytest.mark.parametrize(
    "load, spoil, red",
    [
        (1, not_finite, "compressed serves"),
        (2, a_little_off, "switch to dense"),
        (2, not_finite, "switch to dense"),
        (3, another_answer, "switch back"),
        (4, another_answer, "dense by argument"),
    ],
)
def test_each_step_of_the_rehearsal_can_fail(world, monkeypatch, load, spoil, red):
    """The model that the given load of the four gives is not the one that it should be."""
    real, loads = DenseFallback._load, []

    def spoiled(self, side):
        model, tokenizer = real(self, side)
        loads.append(side)
        if len(loads) == load:
            with torch.no_grad():
                spoil(model)
        return model, tokenizer

    monkeypatch.setattr(DenseFallback, "_load", spoiled)
    found = rehearse(world[1], device="cpu")
    assert loads == ["compressed", "dense", "compressed", "dense"] and not found["ok"]
    wrong = [check["name"] for check in found["checks"] if not check["ok"]]
    assert red in wrong and (spoil is not_finite or wrong == [red])


def test_a_rehearsal_without_tensor_networks_fails(world, monkeypatch):
    monkeypatch.setattr(DenseFallback, "_load", lambda self, side: load_model(world[0], dtype=torch.bfloat16))
    wrong = [check["name"] for check in rehearse(world[1], device="cpu")["checks"] if not check["ok"]]
    assert wrong == ["compressed serves"]


def blocks() -> list[str]:
    """The Python blocks of docs/serving.md."""
    text = (REPOSITORY / "docs" / "serving.md").read_text()
    return [block.split("```")[0] for block in text.split("```python\n")[1:]]


def test_the_lines_in_the_documentation_run(world, monkeypatch):
    monkeypatch.chdir(world[1].parent)
    names = {}
    exec(blocks()[0].replace('"compressed/"', '"out/"'), names)
    assert networks(names["model"]) == 8


def test_the_documented_server_switches_without_a_restart(world, monkeypatch):
    """server.py as it is printed. FastAPI's part (routes, JSON) is played by stand-ins, ours is real."""

    class Api:
        def __init__(self):
            self.routes = {}

        def post(self, path):
            return lambda function: self.routes.setdefault(path, function)

        get = post

    class Model:
        def __init__(self, **given):
            self.__dict__.update(given)

    monkeypatch.setitem(sys.modules, "fastapi", SimpleNamespace(FastAPI=Api))
    monkeypatch.setitem(sys.modules, "pydantic", SimpleNamespace(BaseModel=Model))
    monkeypatch.setenv("KARIPAP_FOLDER", str(world[1]))
    names = {}
    exec(blocks()[1], names)
    routes, prompt = names["app"].routes, names["Prompt"](text="def main():", tokens=4)
    first = routes["/generate"](prompt)
    assert first["served_by"] == "compressed"
    assert routes["/fallback"](names["Switch"](use="dense")) == {"served_by": "dense"}
    dense, tokenizer = load_model(world[0], dtype=torch.bfloat16)
    ids = tokenizer("def main():", return_tensors="pt").input_ids
    expected = tokenizer.decode(
        dense.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True
    )
    assert routes["/generate"](prompt) == {"text": expected, "served_by": "dense"}
    routes["/fallback"](names["Switch"]())
    assert routes["/generate"](prompt) == first
    assert routes["/health"]()["dense_fingerprint"] == open_checkpoint(world[0]).fingerprint
