"""GGUF exports in llama.cpp itself: log-probabilities and tokens beside Karipap's and transformers'."""

import json
import subprocess

import pytest
import torch

from karipap_core.exports.check import Asked, answered, ours
from karipap_core.exports.export import export
from karipap_core.exports.exporter import exporter_named
from tests.helpers import for_llama_cpp, gguf_files
from tests.helpers.engines import engine_python
from tests.helpers.paths import REPOSITORY
from tests.helpers.plans import EVERY, in_turn

pytestmark = pytest.mark.usefixtures("quick_fits")
# llama.cpp rounds activations to 8 bits before integers and to 16 before float16. A router's choice of experts can turn
# on that for single tokens of a model at random.
# Beside that rounding EVERY's corrections of a Mamba weigh too little to be seen: its weights are all in two bits.
KINDS = {"mamba": ("qlr int2 8",)}
ROUTED = ("qwen2 moe", "qwen3 moe", "gpt oss")
WINDOWS = torch.randint(0, 256, (3, 48), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def python():
    return engine_python("engines", "llama_cpp")


@pytest.mark.parametrize("name", gguf_files.MADE)
def test_log_probabilities_are_karipaps(tmp_path, python, name):
    """With its corrections in an adapter, and, in the same engine, without: these do something."""
    changes = {"sliding_window": None} if name == "phi3" else {}
    model = for_llama_cpp.model(name, tmp_path / "made", **changes)
    folder = in_turn(model, tmp_path / "compressed", *KINDS.get(name, EVERY))
    export(folder, "gguf", tmp_path / "out")
    asked = Asked(WINDOWS, WINDOWS[0][:20], new_tokens=4, repeats=1)
    own = ours(folder, asked)
    answer = answered(exporter_named("gguf"), tmp_path / "out", asked, python)
    apart = torch.tensor(answer["logprobs"]) - own
    assert apart.shape == own.shape and len(answer["written"]) == 4 and answer["decode_seconds"] > 0
    assert apart.std() < 0.1 * own.std() and apart.abs().median() < 0.03
    assert name in ROUTED or apart.abs().max() < 0.5
    adapter = tmp_path / "out" / "adapter.gguf"
    if not adapter.is_file():
        assert name == "gpt oss"
        return
    adapter.unlink()
    bare = torch.tensor(answered(exporter_named("gguf"), tmp_path / "out", asked, python)["logprobs"]) - own
    assert bare.std() > 2 * apart.std()


TOKENIZE = """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], vocab_only=True, verbose=False)
texts = json.load(open(sys.argv[2]))
json.dump([model.tokenize(text.encode(), add_bos=False, special=True) for text in texts], open(sys.argv[3], "w"))
"""


@pytest.mark.parametrize("model", ["assets/demo_model", "/work/shared/models/stories260K"])
def test_text_is_cut_as_transformers_cuts_it(tmp_path, python, model):
    from transformers import AutoTokenizer

    source = REPOSITORY / model
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    folder = in_turn(source, tmp_path / "compressed", "int8", most=1)
    export(folder, "gguf", tmp_path / "out")
    lines = (REPOSITORY / "CHANGELOG.md").read_text("utf-8").splitlines()[:150]
    lines += (REPOSITORY / "karipap_core" / "text.py").read_text("utf-8").splitlines()[:150]
    texts = [line for line in lines if line] + ["  two  spaces", "naïve café 漢字 🙂", "a\tb\r\n\n c", "1234567 3.14"]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    command = [python, "-c", TOKENIZE, str(tmp_path / "out" / "model.gguf"), str(tmp_path / "texts.json")]
    subprocess.run([*command, str(tmp_path / "ids.json")], check=True, capture_output=True, timeout=120)
    found = json.loads((tmp_path / "ids.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    assert len(texts) > 200 and [text for text, a, b in zip(texts, found, wanted, strict=True) if a != b] == []
