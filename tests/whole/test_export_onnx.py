"""Exports of tiny models of several families in ONNX Runtime, with and without a past."""

import os

import numpy as np
import pytest
import torch

from karipap_core.exports.export import export
from karipap_core.models.load import load_model
from tests.helpers.architectures import make
from tests.helpers.plans import by_role

pytest.importorskip("onnxscript", reason="onnxscript is not installed here")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed here")


# torch takes some ten seconds to trace one: two of them are tried everywhere, all by `make engines`.
FEW, MORE = ["gpt2", "qwen3"], ["gemma2", "gpt_neox", "mistral", "phi3"]


@pytest.mark.parametrize("architecture", FEW + MORE * ("KARIPAP_ENGINES_PYTHON" in os.environ))
def test_the_engine_gives_our_logits(tmp_path, architecture):
    from karipap_core.exports.engines.with_onnxruntime import Engine

    model = make(architecture, tmp_path / "model")
    folder = by_role(model, tmp_path / "compressed")
    export(folder, "onnx", tmp_path / "onnx")
    ids = torch.randint(0, 250, (1, 40), generator=torch.Generator().manual_seed(0))  # past Mistral's window of 32
    live, _ = load_model(folder)
    with torch.no_grad():
        wanted = live(ids).logits[0].numpy()
    engine, tokens = Engine(tmp_path / "onnx", {"threads": 1}), ids[0].tolist()
    np.testing.assert_allclose(engine.step(tokens)[0], wanted, rtol=0, atol=2e-5)
    cache, rows = None, []
    for begin, end in ((0, 7), (7, 8), (8, 9), (9, 38), (38, 40)):
        logits, cache = engine.step(tokens[begin:end], cache)
        rows.append(logits)
    np.testing.assert_allclose(np.concatenate(rows), wanted, rtol=0, atol=2e-5)
