"""What healing does to a compressed model and its folder: which numbers may move, packed cores opened and packed again,
and the folder written with the new numbers in the places of the old ones."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.tensorfile import Piece, TensorInfo, copied
from karipap_core.compressed.card import CARD
from karipap_core.compressed.folder import CORE, WORDS, computed, fill_folder, new_folder
from karipap_core.compressed.records import KINDS, REPORT, sums_of
from karipap_core.compressed.saved_again import entry_of
from karipap_core.errors import InputError
from karipap_core.healing.loop import like
from karipap_core.layers.cores import Cores, CoresModule, Packed
from karipap_core.models.names import Names
from karipap_core.workspace.kept import keep_json

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel


def choose_trained(model: nn.Module, norms: bool = False) -> int:
    """Lets the float cores, the scales of those in few bits (and the norms, if asked) require gradients and nothing
    else; returns how many numbers.

    Cores that a group shares are held by one module alone, so they are one parameter. Raises InputError where nothing
    is left to train.
    """
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Packed):
            module.free_scales()
        if isinstance(module, Cores | Packed) or (norms and "norm" in type(module).__name__.lower()):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(True)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if not count:
        raise InputError("This folder holds no cores: there is nothing to train.")
    return count


def unpack_cores(model: nn.Module) -> dict[str, list[int]]:
    """Turns packed cores into float parameters of the same values; returns the modules' paths with the cores' numbers.

    Indices stay as they are.
    """
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, CoresModule):
            packed = {k: held for k, held in _own(module) if isinstance(held, Packed)}
            for k, held in packed.items():
                module.cores[k] = nn.Parameter(held.tensor(torch.float32))
            if packed:
                found[path] = sorted(packed)
    return found


@torch.no_grad()
def pack_cores(model: nn.Module, packed: dict[str, list[int]], metric_of: Callable) -> None:
    """Quantizes the cores that `unpack_cores` opened, calibrated in `metric_of(path)` (a Metric or None: weight): see
    `quantize_cores`, which may refit the weight's other cores to what rounding has made of these."""
    from karipap_core.networks.stored import quantize_cores

    for path, numbers in packed.items():
        module = model.get_submodule(path)
        assert isinstance(module, CoresModule), path  # it is one of those that `unpack_cores` named
        spec, cores = module.spec, [core.detach() for core in module.cores()]
        doubles = [core.double() if core.is_floating_point() else core for core in cores]
        stored = quantize_cores(spec, cores, spec.dense(doubles), metric_of(path))
        for k, held in _own(module):
            new = stored[k]
            if not isinstance(held, torch.Tensor):
                continue
            if k in numbers and not isinstance(new, torch.Tensor):
                core = Packed(spec.core_shapes[k], spec.core_matrix(k), str(spec.formats[k]), held.device, held.dtype)
                for name, tensor in new.tensors().items():
                    core.stored[name].copy_(tensor)
                delattr(module.cores, str(k))  # a parameter gives its name to no module
                module.cores[k] = core
            elif held.is_floating_point() and isinstance(new, torch.Tensor):
                held.copy_(new)


def _own(module: CoresModule) -> list[tuple[int, torch.Tensor | Packed]]:
    """(number, core as it is held) of the cores that are this module's own."""
    return [(k, module.cores.held(k)) for k in range(len(module.cores)) if k not in module.cores.lenders]


def live_names(model: "PreTrainedModel", checkpoint: Checkpoint) -> dict[str, str]:
    """Each tensor of the folder → its name in the state dict of the model that was loaded from it, by the renamings
    that transformers itself loads with. Tensors that are stored in another form than they are held are left out."""
    from transformers.core_model_loading import rename_source_key

    names, known = Names(model, checkpoint.tensors), dict.fromkeys(model.state_dict(), True)
    settings = checkpoint.config.get("quantization_config") or {}
    stacks = (settings.get("original") or {}).get("stacks") or {}
    names.unstack(stacks, merged=False)
    cores = {core[1] for core in map(CORE.fullmatch, checkpoint.tensors) if core}
    whole = sorted(name for name in cores if name.rpartition(".")[0] not in names.moved)
    renamings = [*names.renamings, *names.renamings_of([*names.moved, *whole])]
    found = {}
    for tensor in checkpoint.tensors:
        prefix = model.base_model_prefix
        live, converter = rename_source_key(tensor, renamings, names.others, prefix, known)
        if live not in known:
            live, converter = rename_source_key(tensor, [], [], prefix, known)
        if live in known and converter is None:
            found[tensor] = live
    return found


def plan_names(model: "PreTrainedModel", checkpoint: Checkpoint) -> dict[str, str]:
    """The path of each module with cores of its own → the name that its weight has in the plan."""
    settings, found = checkpoint.config["quantization_config"], {}
    for tensor, live in live_names(model, checkpoint).items():
        if core := CORE.fullmatch(tensor):
            found[live[: live.index(".cores.")]] = entry_of(core[1], settings)[0]
    return found


def new_tensors(
    model: "PreTrainedModel", checkpoint: Checkpoint, values: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What the folder's tensors become: name on disk → numbers as they will be stored, from `values` (name in the state
    dict → numbers). Raises InputError where one of them has no place in the folder."""
    live = live_names(model, checkpoint)
    lacking = sorted(values.keys() - set(live.values()))
    if lacking:
        raise InputError(f"The folder stores {lacking[0]} in another form than the model holds it: heal without it.")
    dtypes = {word: name for name, word in WORDS.items()}
    found = {}
    for tensor, name in live.items():
        if name in values:
            value, info = values[name].detach().cpu(), checkpoint.tensors[tensor]
            found[tensor] = value.to(getattr(torch, dtypes[info.dtype])) if info.dtype in dtypes else value
            if tuple(found[tensor].shape) != tuple(info.shape):
                raise InputError(f"The folder stores {tensor} in another shape than the model holds it.")
    return found


@torch.no_grad()
def round_as_stored(model: "PreTrainedModel", checkpoint: Checkpoint, tensors: dict[str, torch.Tensor]) -> None:
    """Puts the numbers of `new_tensors` back into the model: what is measured then is what the folder will hold."""
    state, live = model.state_dict(), live_names(model, checkpoint)
    for tensor, value in tensors.items():
        state[live[tensor]].copy_(like(state[live[tensor]], value))


def write_healed(checkpoint: Checkpoint, tensors: dict[str, torch.Tensor], out: Path, report: dict) -> None:
    """The folder of `checkpoint` at `out` with `tensors` (name on disk → values) in place of its own, all else byte for
    byte, and `report` with the new checksums as its karipap.json. What was found out about the incoming folder is not
    taken along. What else is in `out` stays."""
    pieces = [_piece(name, info, tensors.get(name)) for name, info in checkpoint.tensors.items()]
    with new_folder(out, checkpoint.path, overwrite=True, mend=True) as folder:
        fill_folder(folder, checkpoint, checkpoint.config, pieces)
        if (card := checkpoint.home / CARD).is_file():
            shutil.copyfile(card, folder / CARD)
        for kind in KINDS:
            (folder / f"{kind}.json").unlink(missing_ok=True)
        keep_json(folder / REPORT, report | {"sums": sums_of(folder)})


def _piece(name: str, info: TensorInfo, tensor: torch.Tensor | None) -> Piece:
    if tensor is None:
        return copied(name, info)
    return computed(name, info.dtype, info.shape, lambda: tensor)
