"""Where the parts of a loaded model are: on one device, or over all GPUs of the machine where one is too small."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from karipap_core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FREE = 0.8  # of a GPU's free memory that parameters may take: activations need the rest


def put(model: "PreTrainedModel", device: str) -> None:
    """Moves a model in memory to `device`, in place.

    "cuda" on a machine of several GPUs, of which the present one has no room for the parameters and buffers, spreads
    the blocks over all of them in the model's order (accelerate's device_map="auto"; nothing is left in main memory,
    where weights that are called for could not be replaced in place). "cuda:1" means that GPU alone. The outputs are on
    the device of the inputs. Raises InputError where all GPUs together have no room.
    """
    if device == "cuda" and torch.cuda.device_count() > 1 and not _fits(model):
        from accelerate.utils import get_max_memory

        rooms = {place: int(FREE * room) for place, room in get_max_memory().items() if place != "cpu"}
        spread(model, rooms)
    else:
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper of Module.to does not look like a method


def spread(model: "PreTrainedModel", rooms: Mapping[int, int]) -> dict[str, int]:
    """Puts the model's parts on devices with so many bytes of room each (the number of a GPU), filled in that order;
    returns part → device. A block stays on one device. Raises InputError where all of them together are too small."""
    from accelerate import dispatch_model, infer_auto_device_map

    whole = list(model._no_split_modules or ())
    places: dict = infer_auto_device_map(model, dict(rooms), no_split_module_classes=whole)
    if not set(places.values()) <= set(rooms):
        need, there = bytes_of(model) / 1e9, sum(rooms.values()) / 1e9
        raise InputError(
            f"The model takes {need:.1f} GB, and all GPUs here together have room for {there:.1f} GB: give "
            "--device cpu, or a smaller --dtype where the verb has one."
        )
    dispatch_model(model, places)
    return places


def bytes_of(model: torch.nn.Module) -> int:
    """Of all parameters and buffers, those that are shared once."""
    tensors = {each.data_ptr(): each for each in (*model.parameters(), *model.buffers())}
    return sum(each.numel() * each.element_size() for each in tensors.values())


def _fits(model: torch.nn.Module) -> bool:
    free, _ = torch.cuda.mem_get_info()
    return bytes_of(model) <= FREE * free
