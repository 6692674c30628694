"""Cores in few bits, as integers and shared between weights: on disk, through `from_pretrained`, and dense again."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from karipap_core.checkpoint import open_checkpoint
from karipap_core.hf import densify, load_model, replaced, sites, write_compressed
from karipap_core.networks import spec_from_json
from karipap_core.networks.linear import TensorNetworkLinear
from karipap_core.quantize import quantize_rounding

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
    from karipap_core.networks import NETWORKS as KNOWN
    from karipap_core.networks.dense import Dense

    asked = NETWORKS[kind]
    return ({"dense": Dense} | KNOWN)[asked["network"]].for_shape(*shape, asked["chi"], quantize=form)


def stored_cores(spec, cores) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """(tensors as they are stored, the float64 cores that they stand for)."""
    tensors, meant = {}, []
    for k, (core, form, own) in enumerate(zip(cores, spec.formats, spec.owned, strict=True)):
        if form in (None, "index"):
            mine, value = {f"cores.{k}": core}, core
        else:
            found = quantize_rounding(core.reshape(spec.core_matrix(k)), form)
            mine = {f"cores.{k}.{part}": tensor for part, tensor in found.tensors().items()}
            value = found.dense().reshape(core.shape)
        tensors |= mine if own else {}
        meant.append(value if form == "index" else value.double())
    return tensors, meant


def compressed(checkpoint, folder: Path, spec_of, cores_of=lambda spec, weight: spec.random_cores(len(weight.name)),
               **plan):  # fmt: skip
    """(compressed folder, specs, float64 matrices that its cores stand for) with `spec_of(weight)` for every weight."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, files, specs, matrices = {}, {}, {}, {}
    for number, weight in enumerate(checkpoint.weights):
        spec = spec_of(weight)
        if spec is None:
            continue
        tensors, cores = stored_cores(spec, cores_of(spec, weight))
        files[weight.name] = folder / f"{number}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, files[weight.name])
        entries[weight.name], specs[weight.name], matrices[weight.name] = spec.to_json(), spec, spec.dense(cores)
    document = {"format": "karipap-plan", "version": 1, "model": {}, "metric": "weight", "weights": entries} | plan
    return write_compressed(checkpoint, document, files, folder / "out"), specs, matrices


def loaded(folder: Path, dtype=torch.float32):
    """The model as anybody would load it, with nothing missing and nothing left over."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return model.eval()


def core_bytes(folder: Path) -> int:
    tensors = open_checkpoint(folder, compressed=True).tensors
    return sum(info.size for name, info in tensors.items() if ".cores." in name)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("kind", list(NETWORKS))
@pytest.mark.parametrize("form", FORMATS)
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
