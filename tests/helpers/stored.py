"""Compressed folders with packed cores."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from karipap_core.compressed.folder import write_compressed
from karipap_core.quantization.formats import Format


def stored_cores(spec, cores) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """(tensors as they are stored, the float64 cores that they stand for)."""
    tensors, meant = {}, []
    for k, (core, form, own) in enumerate(zip(cores, spec.formats, spec.owned, strict=True)):
        if form in (None, "index"):
            mine, value = {f"cores.{k}": core}, core
        else:
            found = Format.parse(form).rounded(core.reshape(spec.core_matrix(k)))
            mine = {f"cores.{k}.{part}": tensor for part, tensor in found.tensors().items()}
            value = found.dense().reshape(core.shape)
        tensors |= mine if own else {}
        meant.append(value if form == "index" else value.double())
    return tensors, meant


def compressed(
    checkpoint, folder: Path, spec_of, cores_of=lambda spec, weight: spec.random_cores(len(weight.name)), **plan
):
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
