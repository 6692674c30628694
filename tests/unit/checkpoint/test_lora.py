"""LoRA adapters: merged as PEFT applies them, and alone as the update that they are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from karipap_core import story
from karipap_core.checkpoint.lora.open import joined
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli.frame import main
from karipap_core.errors import InputError
from karipap_core.models.load import load_model
from tests.helpers import architectures, gguf_files
from tests.helpers.adapters import GOOD, NAMED, adapter, matrices


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return architectures.make("llama", tmp_path_factory.mktemp("lora") / "base")


@pytest.fixture
def plain(base, tmp_path) -> Path:
    B, A = matrices(48, 48)
    return adapter(tmp_path / "lora", base, {f"{NAMED}.lora_A.weight": A, f"{NAMED}.lora_B.weight": B})


# What peft is asked for: the architecture, the fields of its config, and those of the base's.
ASKED = {
    "several modules": ("llama", {"target_modules": ["q_proj", "v_proj", "down_proj"], "r": 4, "lora_alpha": 8}, {}),
    "rsLoRA and patterns": (
        "llama_untied",
        {
            "target_modules": ["q_proj", "k_proj", "lm_head"],
            "r": 9,
            "use_rslora": True,
            "rank_pattern": {"k_proj": 2},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 3, r"^model\.layers\.0\.self_attn\.k_proj": 5},
        },
        {},
    ),
    "DoRA": ("qwen2", {"target_modules": ["q_proj", "o_proj"], "use_dora": True}, {}),
    "DoRA on Conv1D": ("gpt2", {"target_modules": ["c_attn"], "use_dora": True, "fan_in_fan_out": True}, {}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}, {}),
    "a table": ("llama_untied", {"target_modules": ["embed_tokens", "up_proj"]}, {}),
    "a tied table": ("llama", {"target_modules": ["embed_tokens"]}, {}),
    "a tied head": ("llama", {"target_modules": ["lm_head"]}, {}),
    "a head saved whole": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, {}),
    "a table saved whole": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, {}),
    "biases": ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}, {}),
    "biases of B": ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True}, {}),
    "an encoder": ("bert", {"target_modules": ["query", "dense"]}, {}),
    "halves": ("llama_bf16", {"target_modules": ["q_proj", "gate_proj"]}, {}),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_merged_model_is_the_model_with_its_adapter_on(tmp_path, name):
    peft = pytest.importorskip("peft")
    import transformers

    architecture, settings, changes = ASKED[name]
    base = architectures.make(architecture, tmp_path / "base", **changes)
    auto = transformers.AutoModel if architecture == "bert" else transformers.AutoModelForCausalLM
    live = auto.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(1)
    live = peft.get_peft_model(live, peft.LoraConfig(init_lora_weights=False, **settings)).eval()
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad and "lora_embedding" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    live.save_pretrained(tmp_path / "lora")
    merged = open_checkpoint(joined(tmp_path / "lora"))
    ours, _ = load_model(merged)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        theirs = live(input_ids=ids)[0]
        mine, before = ours(input_ids=ids)[0], auto.from_pretrained(base)(input_ids=ids)[0]
    size = theirs.abs().max()
    assert (theirs - before).abs().max() > 0.01 * size  # the adapter shows
    assert (mine - theirs).abs().max() < (0.05 if architecture == "llama_bf16" else 2e-5) * size
    if "tied" not in name:
        state = live.merge_and_unload().state_dict()
        bits = 2**-8 if architecture == "llama_bf16" else 1e-5
        for tensor, value in ours.state_dict().items():
            assert torch.allclose(value, state[tensor], bits, bits), tensor


def test_a_merged_weight_is_w_and_s_b_a(base, plain):
    merged, dense = open_checkpoint(joined(plain)), open_checkpoint(base)
    weight, (B, A) = "model.layers.1.self_attn.q_proj", matrices(48, 48)
    assert torch.allclose(merged.read(weight), dense.read(weight) + 2.0 * B @ A, atol=1e-6)
    others = [other.name for other in dense.weights if other.name != weight]
    assert all(torch.equal(merged.read(other), dense.read(other)) for other in others)
    assert (merged.form.words, merged.parameters, merged.kind) == ("LoRA, rank 4", dense.parameters, "causal")
    assert merged.fingerprint != dense.fingerprint
    settings = json.loads((plain / "adapter_config.json").read_text())
    (plain / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 4}))
    assert open_checkpoint(joined(plain)).fingerprint != merged.fingerprint  # by the scale alone


def test_an_update_is_profiled_as_what_it_is(plain, capsys):
    update = open_checkpoint(plain)
    assert (update.parameters, len(update.weights), update.stored_bytes) == (48 * 48, 1, 4 * 2 * 4 * 48)
    (row,) = story.profile(plain).weights
    B, A = matrices(48, 48)
    sigma = np.linalg.svd(2 * (B @ A).double().numpy(), compute_uv=False)
    p = sigma[:4] ** 2 / (sigma[:4] ** 2).sum()
    numbers = row["spectra"]["weight"]
    assert (row["shape"], row["role"], row["layer"], numbers["rank"]) == ([48, 48], "q", 1, 4)
    assert numbers["entropy"] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-6)
    assert main(["profile", str(plain)]) == 0
    shown = capsys.readouterr().out
    assert "lora is an adapter (LoRA, rank 4) of " in shown and "its update s B A alone" in shown


def test_an_update_is_no_model(plain, capsys):
    with pytest.raises(InputError, match=r"its update s B A alone: for the model with it, add --merge"):
        load_model(plain)
    assert main(["plan", str(plain), "--budget", "0.7", "--metric", "weight", "--rule", "uniform"]) == 2
    assert "add --merge, or name both as BASE+ADAPTER" in capsys.readouterr().err


def test_a_merged_model_is_compressed_into_a_folder_of_its_own(plain, base, tmp_path, capsys):
    asked = ["--metric", "weight", "--rule", "uniform", "--budget", "0.9", "--out", str(tmp_path / "plan.json")]
    assert main(["plan", str(plain), "--merge", *asked]) == 0
    out = tmp_path / "compressed"
    assert (
        main(["compress", str(plain), "--base", str(base), "--plan", str(tmp_path / "plan.json"), "--out", str(out)])
        == 0
    )
    assert not [file for file in out.iterdir() if file.name.startswith("adapter_")]
    assert main(["verify", str(out)]) == 0
    live, _ = load_model(out)
    assert live.config.model_type == "llama"


def test_a_base_is_found_beside_its_adapter_or_asked_for(base, plain, tmp_path, monkeypatch):
    settings = json.loads((plain / "adapter_config.json").read_text())
    shutil.copytree(base, tmp_path / "beside")
    for name in ("../beside", str(tmp_path / "beside")):
        (plain / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": name}))
        assert joined(plain) == f"{tmp_path / 'beside'}+{plain}"
    (plain / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "some/model"}))
    with pytest.raises(InputError, match=r"belongs to the model some/model, which is not on this machine: fetch it"):
        joined(plain)
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("beside+lora").key == open_checkpoint(joined("lora", "beside")).key


def test_an_adapter_of_a_quantized_file_is_merged_into_what_that_opens_to(tmp_path):
    folder = gguf_files.make("llama", tmp_path / "made")
    file = gguf_files.write(folder, tmp_path / "made.gguf", "Q8_0")
    B, A = matrices(64, 64)
    lora = adapter(tmp_path / "lora", file, {f"{NAMED}.lora_A.weight": A, f"{NAMED}.lora_B.weight": B})
    merged, dense = open_checkpoint(joined(lora)), open_checkpoint(file)
    weight = "model.layers.1.self_attn.q_proj"
    wanted = (dense.read(weight).float() + 2 * B @ A).to(torch.bfloat16)
    assert torch.allclose(merged.read(weight).float(), wanted.float(), rtol=2**-8)
    assert merged.form.words == "Q8_0 (GGUF) and LoRA, rank 4"


B, A = matrices(48, 48)
REFUSED = {
    "another kind": ({"peft_type": "IA3"}, GOOD, "is an adapter IA3; only LoRA is opened here"),
    "another start": ({"init_lora_weights": "pissa"}, GOOD, "sets init_lora_weights to pissa, by which a model is an"),
    "a part of a model": ({"target_parameters": ["experts"]}, GOOD, r"sets target_parameters to \['experts'\]"),
    "no rank": ({"r": "8"}, GOOD, "r is 8, not a number above 0"),
    "another rank": ({"r": 8}, GOOD, "and its config says rank 8"),
    "a pattern without end": ({"alpha_pattern": {"(a+)+b": 2}}, GOOD, "has the pattern '(a+)+b', which is not read"),
    "no magnitude": ({"use_dora": True}, GOOD, "has a magnitude where its config says none, or none where it does"),
    "half a part": ({}, {f"{NAMED}.lora_A.weight": A}, "lacks lora_B of model.layers.1.self_attn.q_proj"),
    "a stranger": (
        {},
        GOOD | {"base_model.model.x.lora_C.weight": A.clone()},
        "holds base_model.model.x.lora_C.weight, which",
    ),
    "nothing": ({}, {"base_model.model.lm_head.weight": A}, "holds no LoRA matrices"),
    "codes": ({}, {name: value.to(torch.int8) for name, value in GOOD.items()}, "is stored as I8, not in BF16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_lora_is_refused(tmp_path, base, name):
    settings, tensors, said = REFUSED[name]
    folder = adapter(tmp_path / "lora", base, tensors, **settings)
    with pytest.raises(InputError) as refused:
        open_checkpoint(folder)
    assert said in str(refused.value) or said.replace("\\", "") in str(refused.value)


def test_an_adapter_of_another_model_is_refused(tmp_path, base):
    other = {key.replace("q_proj", "wide"): value for key, value in GOOD.items()}
    lora = adapter(tmp_path / "lora", base, other)
    with pytest.raises(
        InputError, match=r"changes .*wide.weight, which base does not have: it is an adapter of another"
    ):
        open_checkpoint(joined(lora))
    lora = adapter(tmp_path / "lora", base, {key.replace("q_proj", "k_proj"): value for key, value in GOOD.items()})
    with pytest.raises(InputError, match=r"as a tensor of 48 × 48, and that of base has 24 × 48"):
        open_checkpoint(joined(lora))


def test_pickled_adapters_are_never_read(tmp_path, plain):
    (plain / "adapter_model.safetensors").rename(plain / "adapter_model.bin")
    with pytest.raises(InputError, match=r"holds only pickled weights \(adapter_model\.bin\)"):
        open_checkpoint(plain)


def test_a_tokenizer_that_came_with_an_adapter_is_the_merged_models(tmp_path, base, plain):
    assert open_checkpoint(joined(plain)).home == base
    shutil.copy(base / "tokenizer.json", plain)
    assert open_checkpoint(joined(plain)).home == base  # the same one
    document = json.loads((base / "tokenizer.json").read_text())
    document["added_tokens"][-1]["content"] = "<other>"
    document["model"]["vocab"] |= {"<other>": 258}
    (plain / "tokenizer.json").write_text(json.dumps(document))
    _, tokenizer = load_model(joined(plain))
    assert "<other>" in tokenizer.get_vocab()
