import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from karipap_core import InputError
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.compressed.densify import densify
from karipap_core.compressed.folder import write_compressed
from karipap_core.layers.linear import TensorNetworkLinear
from karipap_core.models.experts import UnstackedExperts
from karipap_core.models.load import load_model, load_tokenizer
from karipap_core.models.sites import find_reach, observe, replaced, sites
from karipap_core.networks import NETWORKS
from tests.helpers.architectures import ARCHITECTURES, ENCODERS, make
from tests.helpers.paths import REPOSITORY

TOKENS = torch.arange(34).reshape(2, 17) * 7 % 256
MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss")


@torch.no_grad()
def outputs(model) -> torch.Tensor:
    """Logits, or an encoder's last hidden state."""
    return model(input_ids=TOKENS)[0].float()


def plain(folder: Path, name: str, dtype=torch.float32):
    """The model as anybody would load it."""
    auto = AutoModel if name in ENCODERS else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=dtype).eval()


def decomposed(checkpoint, folder: Path, keep=lambda weight: True, chi=lambda weight: min(weight.shape)):
    """A plan (its JSON form) and core files: low-rank for every block weight that `keep` accepts, at full rank."""
    folder.mkdir(parents=True)
    plan, files = {"format": "karipap-plan", "version": 1, "model": {}, "metric": "weight", "weights": {}}, {}
    for number, weight in enumerate(weight for weight in checkpoint.weights if weight.compressible):
        if not keep(weight):
            plan["weights"][weight.name] = {"network": "dense"}
            continue
        spec = NETWORKS["lowrank"].for_shape(*weight.shape, chi(weight))
        cores = spec.decompose(checkpoint.read(weight.name).float())
        plan["weights"][weight.name] = spec.to_json()
        files[weight.name] = folder / f"{number}.safetensors"
        save_file({f"cores.{k}": core.contiguous() for k, core in enumerate(cores)}, files[weight.name])
    return plan, files


@pytest.fixture(scope="module")
def compressed(made, tmp_path_factory):
    """Compressed folders at full rank, cores in float32, each made once; read only."""
    folders = {}

    def of(name: str) -> Path:
        if name not in folders:
            folder = tmp_path_factory.mktemp("compressed")
            checkpoint = open_checkpoint(made(name))
            find_reach(checkpoint)  # which leaves the head of an encoder out
            # One expert's matrix stays dense, so that a layer of experts is mixed.
            plan, files = decomposed(
                checkpoint, folder / "cores", lambda weight: not (weight.expert == 1 and "up" in weight.role)
            )
            folders[name] = write_compressed(checkpoint, plan, files, folder / name, cores_dtype="float32")
        return folders[name]

    return of


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_full_rank_equals_dense_through_from_pretrained(made, compressed, name):
    dense, network = plain(made(name), name), plain(compressed(name), name)
    layers = [module for module in network.modules() if isinstance(module, TensorNetworkLinear)]
    plan = json.loads((compressed(name) / "config.json").read_text())["quantization_config"]["plan"]
    assert len(layers) == sum(entry["network"] != "dense" for entry in plan["weights"].values()) > 0
    assert not any(parameter.is_meta for parameter in network.parameters())
    expected = outputs(dense)
    assert expected.std() > 0.5
    torch.testing.assert_close(outputs(network), expected, rtol=0, atol=1e-5)
    if name not in ENCODERS:
        generated = network.generate(TOKENS[:, :5], max_new_tokens=4, do_sample=False)
        assert torch.equal(generated, dense.generate(TOKENS[:, :5], max_new_tokens=4, do_sample=False))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_saved_again_it_loads_again(compressed, tmp_path, name):
    network = plain(compressed(name), name)
    network.save_pretrained(tmp_path / "again", max_shard_size="100KB")
    torch.testing.assert_close(outputs(plain(tmp_path / "again", name)), outputs(network), rtol=0, atol=0)
    again = open_checkpoint(tmp_path / "again", compressed=True)
    assert sorted(tensor for tensor in again.tensors if ".cores." in tensor and ".experts." in tensor) == sorted(
        tensor
        for tensor in open_checkpoint(compressed(name), compressed=True).tensors
        if ".cores." in tensor and ".experts." in tensor
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_densify_gives_the_original_back(made, compressed, tmp_path, name):
    original = open_checkpoint(made(name))
    said = densify(compressed(name), tmp_path / "dense")
    dense = open_checkpoint(tmp_path / "dense")
    assert said["parameters"] == dense.parameters == original.parameters
    assert "quantization_config" not in dense.config and dense.config == original.config
    stored = {tensor: (info.dtype, info.shape) for tensor, info in original.tensors.items()}
    assert {tensor: (info.dtype, info.shape) for tensor, info in dense.tensors.items()} == stored
    for weight in original.weights:
        torch.testing.assert_close(dense.read(weight.name), original.read(weight.name), rtol=0, atol=2e-7)
    torch.testing.assert_close(
        outputs(plain(tmp_path / "dense", name)), outputs(plain(made(name), name)), rtol=0, atol=1e-5
    )
    assert (tmp_path / "dense" / "tokenizer.json").read_bytes() == (made(name) / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", ["gpt2_bare", "mixtral", "gpt_oss", "bert_masked"])
def test_densify_of_a_folder_that_transformers_saved(made, compressed, tmp_path, name):
    plain(compressed(name), name).save_pretrained(tmp_path / "again")
    densify(tmp_path / "again", tmp_path / "dense")
    torch.testing.assert_close(
        outputs(plain(tmp_path / "dense", name)), outputs(plain(made(name), name)), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sites_are_the_weights_of_the_checkpoint(made, name):
    checkpoint = open_checkpoint(made(name))
    find_reach(checkpoint)
    model, tokenizer = load_model(checkpoint)
    before = outputs(model)
    found = sites(model, checkpoint)
    assert found.keys() == {weight.name for weight in checkpoint.weights if weight.compressible}
    for site in found.values():
        assert torch.equal(site.get(), checkpoint.read(site.name).float())
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=2e-6)
    assert tokenizer.decode(tokenizer("def f(é):\n\t'x'")["input_ids"]) == "def f(é):\n\t'x'"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_replaced_weights_act_as_if_they_were_in_the_file(made, tmp_path, name):
    """Against the same change made to the stored tensors."""
    checkpoint = open_checkpoint(made(name))
    model, _ = load_model(checkpoint)
    found = sites(model, checkpoint)
    before = outputs(model)
    generator = torch.Generator().manual_seed(1)
    matrices = {
        name: site.get() + 0.1 * torch.randn(site.get().shape, generator=generator) for name, site in found.items()
    }
    shutil.copytree(made(name), tmp_path / "changed")
    tensors = {tensor: value.float() for tensor, value in load_file(made(name) / "model.safetensors").items()}
    for weight in checkpoint.weights:
        if weight.name in matrices:
            stored = tensors[weight.tensor] if weight.index is None else tensors[weight.tensor][weight.index]
            stored.copy_(matrices[weight.name].T if weight.transposed else matrices[weight.name])
    save_file(tensors, tmp_path / "changed" / "model.safetensors", {"format": "pt"})
    expected = outputs(plain(tmp_path / "changed", name))
    assert (expected - before).abs().max() > 0.1
    with replaced(found, matrices):
        torch.testing.assert_close(outputs(model), expected, rtol=0, atol=1e-5)
    assert torch.equal(outputs(model), before)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_observed_inputs_and_gradients_give_the_gradient_of_the_weight(made, name):
    """∂L/∂W = Σ_t g_t x_tᵀ, against autograd's own."""
    checkpoint = open_checkpoint(made(name))
    model, _ = load_model(checkpoint)
    found = sites(model, checkpoint)
    x, g = {}, {}
    with observe(found, x.__setitem__, g.__setitem__):
        model(input_ids=TOKENS)[0].square().mean().backward()
    assert x.keys() == g.keys() and len(x) > 0
    for site in found.values():
        gradient = site.module.weight.grad
        if gradient is None:  # an expert that no token was sent to
            assert site.name not in x and name in MIXTURES
            continue
        gradient = gradient.T if isinstance(site.module, Conv1D) else gradient
        torch.testing.assert_close(g[site.name].T @ x[site.name], gradient, rtol=1e-4, atol=1e-7)
    x.clear()
    outputs(model)
    assert not x  # nothing is watched any more


def test_compressed_models_have_sites_too(made, compressed):
    checkpoint = open_checkpoint(made("mixtral"))
    model, _ = load_model(compressed("mixtral"))
    found = sites(model, checkpoint)
    assert found.keys() == {weight.name for weight in checkpoint.weights if weight.compressible}
    for site in found.values():
        torch.testing.assert_close(site.get(), checkpoint.read(site.name), rtol=0, atol=1e-6)
    name = "model.layers.0.self_attn.q_proj"
    with pytest.raises(InputError, match="cannot be replaced"), found[name].replaced(checkpoint.read(name)):
        pass
    seen = {}
    with observe(found, seen.__setitem__):
        outputs(model)
    assert seen[name].shape == (34, 48)


def test_replacing_with_another_shape_is_an_error(made):
    checkpoint = open_checkpoint(made("llama"))
    model, _ = load_model(checkpoint)
    site = sites(model, checkpoint)["model.layers.0.mlp.up_proj"]
    with pytest.raises(InputError, match=r"is \(86, 48\), not \(48, 86\)"), site.replaced(torch.zeros(48, 86)):
        pass


def test_unstacked_experts_hold_no_copy(made):
    model, _ = load_model(made("mixtral"))
    stack = model.model.layers[0].mlp.experts.gate_up_proj.data_ptr()
    before = model.num_parameters()
    found = sites(model, open_checkpoint(made("mixtral")))
    experts = model.model.layers[0].mlp.experts
    assert isinstance(experts, UnstackedExperts) and model.num_parameters() == before
    assert found["model.layers.0.block_sparse_moe.experts.0.w1"].module.weight.data_ptr() == stack


def test_experts_whose_rows_torch_cannot_group(tmp_path):
    folder = make("mixtral", tmp_path / "odd", intermediate_size=31)
    model, _ = load_model(folder)
    before = outputs(model)
    sites(model, open_checkpoint(folder))
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=2e-6)


def test_cores_take_the_weights_dtype_and_models_the_dtype_asked_for(made, tmp_path):
    checkpoint = open_checkpoint(made("llama_bf16"))
    plan, files = decomposed(checkpoint, tmp_path / "cores", chi=lambda weight: 9)
    folder = write_compressed(checkpoint, plan, files, tmp_path / "out")
    stored = open_checkpoint(folder, compressed=True)
    assert {info.dtype for info in stored.tensors.values()} == {"BF16"}
    saved = sum(weight.parameters - 9 * sum(weight.shape) for weight in checkpoint.weights if weight.compressible)
    assert stored.parameters == checkpoint.parameters - saved and stored.bytes == checkpoint.bytes - 2 * saved
    wide, narrow = load_model(folder)[0], load_model(folder, dtype=torch.bfloat16)[0]
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}
    assert wide.num_parameters() == stored.parameters
    torch.testing.assert_close(outputs(narrow), outputs(wide), rtol=0, atol=0.2)
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16


def test_tied_embeddings_stay_tied(compressed):
    model, _ = load_model(compressed("llama"))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_only_the_planned_layers_are_swapped(made, tmp_path):
    checkpoint = open_checkpoint(made("qwen3_moe"))
    plan, files = decomposed(checkpoint, tmp_path / "cores", lambda weight: weight.role in ("q", "fc1"))
    folder = write_compressed(checkpoint, plan, files, tmp_path / "out")
    model = plain(folder, "qwen3_moe")
    swapped = [path for path, module in model.named_modules() if isinstance(module, TensorNetworkLinear)]
    assert swapped == [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    assert hasattr(model.model.layers[1].mlp.experts, "gate_up_proj")  # no expert compressed: transformers' own code
    torch.testing.assert_close(outputs(model), outputs(plain(made("qwen3_moe"), "qwen3_moe")), rtol=0, atol=1e-5)


def test_compressed_models_train_and_load_onto_a_device_map(compressed):
    model = AutoModelForCausalLM.from_pretrained(compressed("llama"), device_map="cpu")
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    layer = model.model.layers[0].self_attn.q_proj
    assert all(core.grad is not None and core.grad.abs().sum() > 0 for core in layer.cores)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_the_same_inputs_give_the_same_bytes_whole_or_sharded(made, tmp_path):
    checkpoint = open_checkpoint(made("qwen2"))
    plan, files = decomposed(checkpoint, tmp_path / "cores", chi=lambda weight: 7)
    one = write_compressed(checkpoint, plan, files, tmp_path / "one")
    other = write_compressed(open_checkpoint(made("qwen2")), plan, files, tmp_path / "other")
    assert folder_bytes(one) == folder_bytes(other)
    sharded = write_compressed(checkpoint, plan, files, tmp_path / "sharded", shard_bytes=60_000)
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    assert torch.equal(outputs(plain(sharded, "qwen2")), outputs(plain(one, "qwen2")))
    assert {file.name for file in one.iterdir()} == {file.name for file in made("qwen2").iterdir()}


def test_writing_is_all_or_nothing(made, tmp_path):
    checkpoint = open_checkpoint(made("llama"))
    plan, files = decomposed(checkpoint, tmp_path / "cores", chi=lambda weight: 5)
    out = tmp_path / "out"

    def killed(stage, done, total, item="", message=""):
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_compressed(checkpoint, plan, files, out, progress=killed)
    assert not out.exists()
    (out / ".parts").mkdir(parents=True)  # work in progress is no model
    (out / ".parts" / "note").write_text("stays")
    told = []
    write_compressed(checkpoint, plan, files, out, progress=lambda *line: told.append(line))
    assert told[-1][1] == told[-1][2] == len(told) and (out / ".parts" / "note").read_text() == "stays"
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []
    with pytest.raises(InputError, match="already exists"):
        write_compressed(checkpoint, plan, files, out)
    before = folder_bytes(out)
    (out / "model.safetensors").write_bytes(b"damaged")
    write_compressed(checkpoint, plan, files, out, overwrite=True)
    assert folder_bytes(out) == before
    with pytest.raises(InputError, match="is the model itself"):
        write_compressed(checkpoint, plan, files, made("llama"), overwrite=True)


def test_plans_cores_and_checkpoints_that_do_not_fit(made, tmp_path):
    checkpoint = open_checkpoint(made("llama"))
    plan, files = decomposed(checkpoint, tmp_path / "cores", chi=lambda weight: 5)
    out, name = tmp_path / "out", "model.layers.1.mlp.up_proj"
    with pytest.raises(InputError, match=f"Weight {name} is in one of plan and cores"):
        write_compressed(checkpoint, plan, {key: file for key, file in files.items() if key != name}, out)
    wrong = plan | {"weights": plan["weights"] | {name: plan["weights"][name] | {"chi": [6]}}}
    with pytest.raises(InputError, match=rf"{name}: the cores in .* are not those of lowrank"):
        write_compressed(checkpoint, wrong, files, out)
    unknown = plan | {"weights": plan["weights"] | {"ghost": plan["weights"][name]}}
    with pytest.raises(InputError, match="no weight named ghost"):
        write_compressed(checkpoint, unknown, files | {"ghost": files[name]}, out)
    for model, table, said in (
        ("llama", "model.embed_tokens", "a 'mpo' cannot be looked up in"),
        ("gpt2", "transformer.wpe", "a weight of role position stays dense"),
    ):
        entry = NETWORKS["mpo"].for_shape(263, 48, 5).to_json()
        with pytest.raises(InputError, match=f"{table}: {said}"):
            write_compressed(
                open_checkpoint(made(model)), plan | {"weights": {table: entry}}, {table: files[name]}, out
            )
    shutil.copy(made("llama") / "model.safetensors", tmp_path / "alone.safetensors")
    for act in (load_model, lambda model: write_compressed(model, plan, files, out)):
        with pytest.raises(InputError, match=r"alone has no config\.json"):
            act(open_checkpoint(tmp_path / "alone.safetensors"))
    with pytest.raises(InputError, match="not a model compressed by Karipap"):
        densify(made("llama"), out)
    assert not out.exists()


def test_folders_whose_plan_was_tampered_with(compressed, tmp_path):
    shutil.copytree(compressed("llama"), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    plan, name = config["quantization_config"]["plan"], "model.layers.1.mlp.up_proj"

    def refused(change: dict, complaint: str) -> None:
        weights = {key: entry for key, entry in (plan["weights"] | change).items() if entry}
        settings = config["quantization_config"] | {"plan": plan | {"weights": weights}}
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
        with pytest.raises(InputError, match=complaint):
            load_model(tmp_path / "model")

    refused({name: plan["weights"][name] | {"out": [87]}}, f"weight {name}: the network is 87 x 48")
    refused({name: {"network": "pickle"}}, f"weight {name}: .*'pickle'")
    refused({"model.layers.9.mlp.up_proj": plan["weights"][name]}, r"no linear layer for weight model\.layers\.9")
    refused({"model.norm": plan["weights"][name]}, r"weight model\.norm")
    settings = {"quant_method": "karipap"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(InputError, match="holds no Karipap plan"):
        load_model(tmp_path / "model")


def test_loading_says_what_is_wrong(made, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(made("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks parameter model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(InputError, match="no model that transformers can build: .*unheard_of"):
        load_model(folder)


def test_loading_one_file_a_shard_set_and_a_model_without_tokenizer(made, tmp_path):
    expected = outputs(load_model(made("llama"))[0])
    shutil.copytree(made("llama"), tmp_path / "renamed")
    (tmp_path / "renamed" / "model.safetensors").rename(tmp_path / "renamed" / "other.safetensors")
    (tmp_path / "renamed" / "tokenizer.json").unlink()
    model, tokenizer = load_model(tmp_path / "renamed" / "other.safetensors", device="auto")
    assert tokenizer is None and torch.equal(outputs(model.cpu()), expected)
    assert torch.equal(outputs(load_model(make("llama", tmp_path / "sharded", max_shard="30KB"))[0]), expected)


def test_loading_is_silent(made, capfd):
    load_model(made("bert_masked"))
    assert capfd.readouterr() == ("", "")


IMPORTED_FIRST = """
import sys
import karipap_core
assert not {"torch", "transformers", "numpy"} & sys.modules.keys()
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(model.model.layers[0].mlp.up_proj).__name__)
"""
IMPORTED_LAST = """
import sys
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
assert "karipap" not in AUTO_QUANTIZER_MAPPING
import karipap_core
print(AUTO_QUANTIZER_MAPPING["karipap"].__name__)
"""


@pytest.mark.parametrize(
    ("program", "printed"), [(IMPORTED_FIRST, "TensorNetworkLinear"), (IMPORTED_LAST, "KaripapQuantizer")]
)
def test_import_karipap_core_is_all_it_takes(compressed, program, printed):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(compressed("llama"))], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == printed


def test_a_tokenizer_of_bytes_needs_no_vocabulary(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert load_tokenizer(tmp_path)("aé", add_special_tokens=False)["input_ids"] == [byte + 3 for byte in "aé".encode()]
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    assert load_tokenizer(tmp_path) is None


def test_a_float_that_json_lacks_is_read_as_transformers_writes_it():
    """Its `save_pretrained` writes Falcon-H1's and Mamba's limits of time steps as {"__float__": "Infinity"}."""
    from transformers import FalconH1Config

    from karipap_core.models.empty import config_of

    document = FalconH1Config().to_json_string()
    assert "__float__" in document
    assert list(config_of(json.loads(document)).time_step_limit) == [0.0, float("inf")]
