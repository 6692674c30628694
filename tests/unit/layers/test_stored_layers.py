"""Cores in few bits, as integers and shared between weights: on disk, through `from_pretrained`, and dense again."""

import copy
import itertools
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from karipap_core import InputError, networks
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.compressed.densify import densify
from karipap_core.compressed.folder import write_compressed
from karipap_core.compressed.records import sums_of
from karipap_core.compressed.verify import verify
from karipap_core.layers.embedding import TensorNetworkEmbedding
from karipap_core.layers.linear import TensorNetworkLinear
from karipap_core.models.load import load_model
from karipap_core.models.sites import replaced, sites
from karipap_core.networks import Metric, Spec, spec_from_json
from karipap_core.networks.dense import Dense
from karipap_core.networks.tree.network import fit_group, group_specs
from karipap_core.plan.document import Plan, model_entry
from tests.helpers.stored import compressed, stored_cores

pytestmark = pytest.mark.usefixtures("quick_fits")
TOKENS = torch.arange(34).reshape(2, 17) * 7 % 256
FORMATS = ("int8", "int4", "int3", "int2", "int4g24", "fp8")
NETWORKS = {
    "lowrank": {"network": "lowrank", "chi": 6},
    "mpo": {"network": "mpo", "chi": 5},
    "dense": {"network": "dense", "chi": 0},
}


@torch.no_grad()
def outputs(model) -> torch.Tensor:
    return model(input_ids=TOKENS)[0].float()


def for_shape(kind: str, shape, form: str | None):
    asked = NETWORKS[kind]
    return ({"dense": Dense} | networks.NETWORKS)[asked["network"]].for_shape(*shape, asked["chi"], quantize=form)


def loaded(folder: Path, dtype=torch.float32):
    """The model as anybody would load it, with nothing missing and nothing left over."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return model.eval()


def core_bytes(folder: Path) -> int:
    tensors = open_checkpoint(folder, compressed=True).tensors
    return sum(info.size for name, info in tensors.items() if ".cores." in name)


EVERYWHERE = [(name, form) for name in ("llama", "gpt2") for form in FORMATS]
MIXTURES = [(name, form) for name in ("mixtral", "gpt_oss") for form in ("int3", "fp8")]


@pytest.mark.parametrize("kind", list(NETWORKS))
@pytest.mark.parametrize(("name", "form"), EVERYWHERE + MIXTURES)
def test_packed_cores_from_disk_to_logits(made, tmp_path, name, kind, form):
    checkpoint = open_checkpoint(made(name))
    folder, specs, matrices = compressed(
        checkpoint, tmp_path / "a", lambda weight: for_shape(kind, weight.shape, form) if weight.compressible else None
    )
    assert core_bytes(folder) == sum(spec.bytes(4) for spec in specs.values())
    for spec in specs.values():
        assert spec == spec_from_json(spec.to_json())

    reference, _ = load_model(checkpoint, dtype=torch.float64)
    with replaced(sites(reference, checkpoint), matrices):
        expected = outputs(reference)
    torch.testing.assert_close(outputs(loaded(folder, torch.float64)), expected, rtol=1e-5, atol=1e-5)
    model = loaded(folder)
    layers = [module for module in model.modules() if isinstance(module, TensorNetworkLinear)]
    assert len(layers) == len(specs) and not any(True for layer in layers for _ in layer.cores.parameters())
    torch.testing.assert_close(outputs(model), expected, rtol=1e-4, atol=1e-4)
    assert sum(layer.report()["bytes"] for layer in layers) == core_bytes(folder)

    model.save_pretrained(tmp_path / "again")
    assert core_bytes(tmp_path / "again") == core_bytes(folder)
    assert torch.equal(outputs(loaded(tmp_path / "again")), outputs(model))
    densify(folder, tmp_path / "dense")
    dense = open_checkpoint(tmp_path / "dense")
    assert dense.config == checkpoint.config and dense.tensors.keys() == checkpoint.tensors.keys()
    for weight, matrix in matrices.items():
        torch.testing.assert_close(dense.read(weight).double(), matrix, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", ["int4", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "auto"])
def test_packed_tensors_keep_their_types_whatever_the_model_is_loaded_in(made, tmp_path, form, dtype):
    checkpoint = open_checkpoint(made("llama_bf16"))

    def spec_of(weight):  # one weight a layer keeps plain cores
        return for_shape("lowrank", weight.shape, None if weight.role == "q" else form) if weight.compressible else None

    folder, specs, _ = compressed(checkpoint, tmp_path / "a", spec_of)
    assert core_bytes(folder) == sum(spec.bytes(2) for spec in specs.values())
    stored = open_checkpoint(folder, compressed=True).tensors
    words = {name.rpartition(".")[2]: info.dtype for name, info in stored.items() if ".up_proj." in name}
    integers, floats = {"codes": "U8", "scales": "F16", "zeros": "U8"}, {"codes": "F8_E4M3", "scales": "F16"}
    assert words == (integers if form == "int4" else floats)
    assert {info.dtype for name, info in stored.items() if ".q_proj." in name} == {"BF16"}

    model = loaded(folder, dtype)
    wanted = torch.bfloat16 if dtype == "auto" else dtype
    assert model.dtype == wanted and {parameter.dtype for parameter in model.parameters()} == {wanted}
    for layer in (module for module in model.modules() if isinstance(module, TensorNetworkLinear)):
        assert layer.weight.dtype == wanted
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.endswith((".codes", ".scales"))}
    assert {tensor.dtype for tensor in kept.values()} == {
        torch.float16,
        torch.uint8 if form == "int4" else torch.float8_e4m3fn,
    }
    before = outputs(model)
    for other in (torch.float64, torch.bfloat16, torch.float16, wanted):
        model.to(other)
        now = model.state_dict()
        assert all(now[name].dtype == tensor.dtype for name, tensor in kept.items())
        assert all(torch.equal(now[name].float(), tensor.float()) for name, tensor in kept.items())
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=0.1)
    assert torch.equal(outputs(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu")), before)


def test_packed_tensors_keep_their_types_where_a_model_wants_float32(made, tmp_path, monkeypatch):
    checkpoint = open_checkpoint(made("llama_bf16"))
    folder, _, _ = compressed(
        checkpoint, tmp_path / "a", lambda w: for_shape("lowrank", w.shape, "fp8") if w.compressible else None
    )
    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", {"up_proj", "norm"})
    model = loaded(folder, torch.bfloat16)
    packed = model.model.layers[0].mlp.up_proj.cores.held(0)
    assert model.model.norm.weight.dtype == torch.float32
    assert (packed.codes.dtype, packed.scales.dtype) == (torch.float8_e4m3fn, torch.float16)


def test_a_config_without_a_dtype_does_not_load_as_the_scales(made, tmp_path):
    shutil.copytree(made("llama_bf16"), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path / "model")
    folder, _, _ = compressed(
        checkpoint, tmp_path / "a", lambda w: for_shape("lowrank", w.shape, "int4") if w.compressible else None
    )
    assert loaded(folder, "auto").dtype == torch.bfloat16
    densify(folder, tmp_path / "dense")
    assert open_checkpoint(tmp_path / "dense").config == config


@pytest.mark.parametrize("form", ["int4", "int3", "fp8", None])
def test_a_packed_layer_in_the_hand(form):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(36, 24), torch.randn(5, 36)
    spec = for_shape("lowrank", (24, 36), form)
    layer = TensorNetworkLinear.from_linear(linear, spec)
    tensors, cores = stored_cores(spec, spec.decompose(linear.weight))
    assert {name: value.dtype for name, value in layer.state_dict().items() if name != "bias"} == {
        name: value.dtype for name, value in tensors.items()
    }
    wanted = x @ spec.dense(cores).float().T + linear.bias
    with torch.no_grad():
        for runtime in ("cores", "dense"):
            layer.runtime = runtime
            torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
        assert layer.formed is layer._formed_weight()  # formed once
        other = TensorNetworkLinear.from_linear(torch.nn.Linear(36, 24), spec)
        layer.load_state_dict(other.state_dict())  # and anew when what it was formed from has changed
        torch.testing.assert_close(layer(x), other(x), rtol=1e-4, atol=1e-5)
    report = layer.report()
    assert report["bytes"] == spec.bytes(4) and report["memory_bytes"] == spec.bytes(4) + 4 * 24 * 36
    twin = copy.deepcopy(other).to(torch.bfloat16)
    assert twin(x.bfloat16()).dtype == torch.bfloat16 and twin.weight.dtype == torch.bfloat16
    if form:
        assert twin.report()["bytes"] == spec.bytes(2) == spec.bytes(4)
        x.requires_grad_()
        other(x).sum().backward()  # gradients pass through to what lies before
        assert x.grad.abs().sum() > 0
    torch.compiler.reset()  # the limit of recompilations counts over all tests
    compiled = torch.compile(other, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), other(x))
    assert "codes" not in "".join(name for name, _ in other.named_parameters())


@dataclass(frozen=True)
class Mixed(Spec):
    """A network for the test: Ŵ = L R, the columns of R in a stored order; a group shares R and the order."""

    members: tuple[str, ...] = ()
    at: int = 0
    network: ClassVar[str] = "mixed"

    def __post_init__(self):
        object.__setattr__(self, "members", tuple(self.members))
        super().__post_init__()

    @property
    def core_shapes(self):
        return [(self.n_out, self.chi[0]), (self.chi[0], self.n_in), (self.n_in,)]

    @property
    def owned(self):
        return [True, self.at == 0, self.at == 0]

    @property
    def formats(self):
        return [None, self.quantize, "index"]

    def dense(self, cores):
        return cores[0] @ cores[1][:, cores[2].long()]

    def apply(self, x, cores):
        return x @ cores[1][:, cores[2].long()].T @ cores[0].T

    def multiply_adds(self, batch=1):
        return batch * self.parameters

    def cores(self, weight):
        def some(*shape, seed):
            return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 2

        order = torch.randperm(self.n_in, generator=torch.Generator().manual_seed(5)).int()
        return [
            some(self.n_out, self.chi[0], seed=len(weight.name) + self.at),
            some(self.chi[0], self.n_in, seed=3),
            order,
        ]


def alike(checkpoint, roles=None) -> list[list[str]]:
    """Names of the weights of one role and expert, layer by layer."""
    names = {}
    for weight in checkpoint.weights:
        if weight.compressible and (roles is None or weight.role in roles):
            names.setdefault((weight.role, weight.expert), []).append(weight.name)
    return list(names.values())


@pytest.fixture
def groups(monkeypatch):
    """Specs of `Mixed`, shared by all weights of a checkpoint that have one role and shape."""
    monkeypatch.setitem(networks.NETWORKS, "mixed", Mixed)

    def of(checkpoint, roles, form):
        found = {}
        for members in alike(checkpoint, roles):
            for at, name in enumerate(members):
                out, in_ = checkpoint.weight(name).shape
                found[name] = Mixed((out,), (in_,), (7,), form, tuple(members), at)
        return found

    return of


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt2_bare", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("form", [None, "int4"])
def test_shared_and_integer_cores(made, tmp_path, groups, name, form):
    checkpoint = open_checkpoint(made(name))
    roles = {"llama": ("up", "q"), "gpt2": ("fc1", "qkv"), "mixtral": ("up", "v"), "gpt_oss": ("gate_up", "k")}
    roles = roles[name.removesuffix("_bare")]
    specs = groups(checkpoint, roles, form)
    # The plan may name a borrower before its lender.
    folder, _, matrices = compressed(checkpoint, tmp_path / "a", lambda w: specs.get(w.name), Mixed.cores)
    config = json.loads((folder / "config.json").read_text())
    entries = config["quantization_config"]["plan"]["weights"]
    config["quantization_config"]["plan"]["weights"] = dict(reversed(entries.items()))
    (folder / "config.json").write_text(json.dumps(config))
    assert core_bytes(folder) == sum(spec.bytes(4) for spec in specs.values())

    reference, _ = load_model(checkpoint, dtype=torch.float64)
    with replaced(sites(reference, checkpoint), matrices):
        expected = outputs(reference)
    torch.testing.assert_close(outputs(loaded(folder, torch.float64)), expected, rtol=1e-5, atol=1e-5)
    model = loaded(folder)
    found = sites(model, checkpoint)
    for name_, spec in specs.items():
        layer, lender = found[name_].module, found[spec.members[0]].module
        for k, own in enumerate(spec.owned):
            assert (layer.cores.held(k) is lender.cores.held(k)) == (not own or layer is lender)
        assert layer.report()["bytes"] == spec.bytes(4)
        assert layer.cores[2].dtype == torch.int32 and not layer.cores[2].requires_grad

    model = loaded(folder)  # `sites` has split what the plan left stacked, and views are not what is stored
    model.save_pretrained(tmp_path / "again", max_shard_size="40KB")
    assert core_bytes(tmp_path / "again") == core_bytes(folder)
    assert torch.equal(outputs(loaded(tmp_path / "again")), outputs(model))
    prefix = "transformer." if name == "gpt2_bare" else ""  # transformers puts it before the names when it saves
    for source, added in ((folder, ""), (tmp_path / "again", prefix)):
        densify(source, tmp_path / "dense", overwrite=True)
        dense = open_checkpoint(tmp_path / "dense")
        for weight, matrix in matrices.items():
            torch.testing.assert_close(dense.read(added + weight).double(), matrix, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", list(networks.NETWORKS))
@pytest.mark.parametrize("form", [None, "int4"])
def test_every_network_of_the_registry(made, tmp_path, kind, form):
    checkpoint = open_checkpoint(made("llama"))
    folder, specs, matrices = compressed(
        checkpoint,
        tmp_path / "a",
        lambda w: networks.NETWORKS[kind].for_shape(*w.shape, 5, quantize=form) if w.compressible else None,
    )
    assert core_bytes(folder) == sum(spec.bytes(4) for spec in specs.values())
    reference, _ = load_model(checkpoint, dtype=torch.float64)
    with replaced(sites(reference, checkpoint), matrices):
        expected = outputs(reference)
    torch.testing.assert_close(outputs(loaded(folder, torch.float64)), expected, rtol=1e-5, atol=1e-5)
    densify(folder, tmp_path / "dense")
    for weight, matrix in matrices.items():
        torch.testing.assert_close(open_checkpoint(tmp_path / "dense").read(weight).double(), matrix)


def sizes_on_disk(file: Path) -> dict[str, int]:
    """Bytes of each tensor by the file's own header, which with them is the whole file."""
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    sizes = {name: end - start for name, (start, end) in ((n, info["data_offsets"]) for n, info in header.items())}
    assert len(data) == 8 + int.from_bytes(data[:8], "little") + sum(sizes.values())
    return sizes


@pytest.mark.parametrize("kind", list(networks.NETWORKS))
def test_bytes_on_disk_are_the_plans_in_every_format(made, tmp_path, kind):
    """Each role's weights in a format of their own, so that a folder holds all five; verify has nothing to say."""
    checkpoint, specs = open_checkpoint(made("llama_bf16")), {}
    forms = ("int8", "int4", "int3", "int2", "fp8")
    for members, form in zip(alike(checkpoint), itertools.cycle(forms), strict=False):
        shape = checkpoint.weight(members[0]).shape
        found = [networks.NETWORKS[kind].for_shape(*shape, 5, quantize=form)] * len(members)
        specs |= zip(members, group_specs(members, shape, 5, quantize=form) if kind == "tree" else found, strict=True)
    assert {spec.quantize for spec in specs.values()} == set(forms)
    folder, _, _ = compressed(checkpoint, tmp_path / "a", lambda w: specs.get(w.name), model=model_entry(checkpoint))
    sizes = sizes_on_disk(folder / "model.safetensors")
    for name, spec in specs.items():
        assert sum(size for tensor, size in sizes.items() if tensor.startswith(f"{name}.cores.")) == spec.bytes(2)
        for k, (form, own) in enumerate(zip(spec.formats, spec.owned, strict=True)):
            if own and form not in (None, "index"):  # packed without gaps
                bits = 8 if form == "fp8" else int(form[3])
                assert sizes[f"{name}.cores.{k}.codes"] == -(-math.prod(spec.core_shapes[k]) * bits // 8)
    plan = Plan.from_json(
        json.loads((folder / "config.json").read_text())["quantization_config"]["plan"], "config.json"
    )
    assert sum(sizes.values()) == plan.ledger(checkpoint).bytes
    verdict = verify(folder, checkpoint, {"sums": sums_of(folder)})
    assert verdict["ok"], verdict["checks"]


@pytest.mark.parametrize("share", ["in", "out", "both", "all"])
@pytest.mark.parametrize("form", [None, "int3"])
def test_trees_over_the_layers_of_a_model(made, tmp_path, share, form):
    checkpoint = open_checkpoint(made("mixtral"))
    specs, fitted = {}, {}
    for members in alike(checkpoint):
        weights = [checkpoint.read(name).double() for name in members]
        group = group_specs(members, checkpoint.weight(members[0]).shape, 6, share=share, quantize=form)
        cores = fit_group(group, weights, [Metric("weight")] * len(members))
        specs |= dict(zip(members, group, strict=True))
        fitted |= {name: [core.float() for core in each] for name, each in zip(members, cores, strict=True)}
    assert any(len(spec.members) == 2 and ".experts." in name for name, spec in specs.items())
    folder, _, matrices = compressed(
        checkpoint, tmp_path / "a", lambda w: specs.get(w.name), lambda spec, w: fitted[w.name]
    )
    assert core_bytes(folder) == sum(spec.bytes(4) for spec in specs.values())
    reference, _ = load_model(checkpoint, dtype=torch.float64)
    with replaced(sites(reference, checkpoint), matrices):
        expected = outputs(reference)
    torch.testing.assert_close(outputs(loaded(folder, torch.float64)), expected, rtol=1e-5, atol=1e-5)
    model = loaded(folder)
    if form is None:
        assert sum(p.numel() for name, p in model.named_parameters() if ".cores." in name) == sum(
            spec.parameters for spec in specs.values()
        )
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(outputs(loaded(tmp_path / "again")), outputs(model))
    densify(tmp_path / "again", tmp_path / "dense")
    for weight, matrix in matrices.items():
        torch.testing.assert_close(
            open_checkpoint(tmp_path / "dense").read(weight).double(), matrix, rtol=1e-5, atol=1e-6
        )


def test_packed_and_borrowed_cores_compile_together():
    first, second = group_specs(["a", "b"], (48, 48), 6, quantize="int4")
    lender = TensorNetworkLinear.from_spec(first, seed=0)
    borrower = TensorNetworkLinear(second, borrowed={k: lender.cores for k, own in enumerate(second.owned) if not own})
    borrower.set_cores(first.random_cores(0))
    table = TensorNetworkEmbedding(for_shape("lowrank", (263, 48), "int3"))
    table.set_cores(table.spec.random_cores(0))
    model = torch.nn.Sequential(table, lender, borrower)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(TOKENS), model(TOKENS))
    torch.testing.assert_close(model(TOKENS), table(TOKENS) @ lender.weight.T @ borrower.weight.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [None, "int4"])
@pytest.mark.parametrize("offload_buffers", [False, True])
def test_weights_kept_on_disk_are_fetched_when_they_are_used(made, tmp_path, groups, form, offload_buffers):
    """By accelerate, which brings a module's own weights back when it is called, and takes them away again."""
    pytest.importorskip("accelerate")
    checkpoint = open_checkpoint(made("llama"))
    specs = groups(checkpoint, ("up", "q"), form)
    table = for_shape("lowrank", (263, 48), form)
    folder, _, _ = compressed(
        checkpoint,
        tmp_path / "a",
        lambda w: table if w.role == "embed" else specs.get(w.name),
        lambda spec, w: spec.random_cores(0) if spec is table else spec.cores(w),
    )
    parts = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
    expected = outputs(loaded(folder))
    for away in ("model.layers.0", "model.layers.1", "model.embed_tokens"):
        places = {part: "disk" if part == away else "cpu" for part in parts}
        model = AutoModelForCausalLM.from_pretrained(
            folder, device_map=places, offload_folder=tmp_path / "disk", offload_buffers=offload_buffers
        )
        if form is None or away != "model.embed_tokens" or offload_buffers:
            assert any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
        torch.testing.assert_close(outputs(model), expected)


def test_shared_cores_stay_shared_in_copies_and_in_training(made, tmp_path, groups):
    checkpoint = open_checkpoint(made("llama"))
    specs = groups(checkpoint, ("up",), None)
    folder, _, _ = compressed(checkpoint, tmp_path / "a", lambda w: specs.get(w.name), Mixed.cores)
    model = loaded(folder)
    twin = copy.deepcopy(model).to(torch.float64)
    layers = [part.mlp.up_proj for part in (*model.model.layers, *twin.model.layers)]
    assert layers[0].cores[1] is layers[1].cores[1] and layers[2].cores[1] is layers[3].cores[1]
    assert layers[0].cores[1] is not layers[2].cores[1] and layers[3].cores[1].dtype == torch.float64
    own = sum(parameter.numel() for parameter in layers[0].parameters()) - layers[0].cores[0].numel()
    assert sum(p.numel() for p in layers[1].parameters()) == layers[1].cores[0].numel() and own == 7 * 48
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    assert layers[1].cores[1].grad.abs().sum() > 0
    layers[0].runtime = layers[1].runtime = "dense"
    with torch.no_grad():
        before = outputs(model)
        layers[1].cores[1] = torch.nn.Parameter(2 * layers[1].cores[1])  # written by the borrower, seen by both
        assert layers[0].cores[1] is layers[1].cores[1] and not torch.equal(outputs(model), before)


def test_a_borrower_without_its_lender(made, tmp_path, groups):
    checkpoint = open_checkpoint(made("llama"))
    specs = groups(checkpoint, ("up",), None)
    first, second = specs
    with pytest.raises(InputError, match=f"{second}: it shares cores with {first}, which has no entry"):
        compressed(checkpoint, tmp_path / "a", lambda w: specs[second] if w.name == second else None, Mixed.cores)
    folder, _, _ = compressed(checkpoint, tmp_path / "b", lambda w: specs.get(w.name), Mixed.cores)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["plan"]["weights"][first]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"{second}: it shares cores with {first}, which has no entry"):
        load_model(folder)
    alone = TensorNetworkLinear(specs[second])  # by itself it holds what it needs
    assert len(alone.cores.state_dict()) == 3


def test_a_file_of_cores_in_another_format_is_refused(made, tmp_path):
    checkpoint = open_checkpoint(made("llama"))
    name = "model.layers.0.mlp.up_proj"
    spec = for_shape("lowrank", checkpoint.weight(name).shape, "int4")
    tensors, _ = stored_cores(spec, spec.random_cores(0))
    for wrong in (
        {key: value for key, value in tensors.items() if not key.endswith("zeros")},
        tensors | {"cores.0.scales": tensors["cores.0.scales"].float()},
        tensors | {"cores.1.codes": tensors["cores.1.codes"][1:].clone()},
        {f"cores.{k}": core for k, core in enumerate(spec.random_cores(0))},
    ):
        save_file(wrong, tmp_path / "wrong.safetensors")
        plan = {"weights": {name: spec.to_json()}}
        with pytest.raises(InputError, match=f"weight {name}: the cores in .* are not those of lowrank"):
            write_compressed(checkpoint, plan, {name: tmp_path / "wrong.safetensors"}, tmp_path / "out")


@pytest.mark.parametrize("form", ["int8", "int8g8", "int4", "int4g6", "int3", "int2g8", "fp8"])
def test_a_packed_matrix_is_multiplied_with_as_it_is_stored(form, monkeypatch):
    """`product` and the whole matrix give the same numbers, and the same gradients where there are any."""
    spec = Dense.for_shape(24, 48, quantize=form)
    layer = TensorNetworkLinear.from_spec(spec, bias=True, seed=0)
    layer.requires_grad_(False)
    monkeypatch.setattr("karipap_core.quantization.integers.AT_ONCE", 5 * 48)  # 24 rows in five parts
    for shape in ((48,), (1, 48), (2, 3, 48), (0, 48)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
        wanted = x @ layer.weight.T + layer.bias
        with torch.no_grad():
            torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)
        layer(x).sum().backward()
        torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(shape))
    monkeypatch.setattr("karipap_core.layers.linear.FEW", 0)
    torch.testing.assert_close(layer(x.detach()), wanted)
