"""A model and a LoRA of it as one checkpoint, merged weight by weight when they are read: W + s B A, and what DoRA
makes of it, as PEFT's `merge_and_unload` does.

Where the base ties its head to its table of tokens and the adapter changes one of them, the other stays as it was, as
in the model with its adapter on. (`merge_and_unload` of peft 0.21 adds the update to both there.)
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from karipap_core.checkpoint.form import Form
from karipap_core.checkpoint.lora.adapter import Adapter, Part
from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.tensorfile import FLOATS, OpenedTensor, TensorInfo, chunks, opened, read_stored
from karipap_core.errors import InputError

if TYPE_CHECKING:  # torch takes a second to import
    import torch

HEAD = "lm_head.weight"  # what a head is called that no file of a tied model names


def merge(base: Checkpoint, adapter: Adapter) -> tuple[dict[str, TensorInfo], dict[str, Any]]:
    """(the tensors of the merged model by their names in the base, what its config.json says otherwise).

    Raises InputError where the adapter is of another model.
    """
    tensors, said = _own_head(base, adapter)
    turned = {weight.tensor for weight in base.weights if weight.transposed}
    for parameter, info in adapter.whole.items():
        name = _name(tensors, base, adapter, parameter)
        before = tensors[name].shape
        rows = len(before) == 2 and before[0] != info.shape[0]
        if before[1:] != info.shape[1:] or (rows and info.shape[0] < 1) or (not before == info.shape and not rows):
            raise _other(base, adapter, parameter, info.shape, before)
        said |= {"vocab_size": info.shape[0]} if rows else {}
        tensors[name] = opened(info, info.shape, _made(partial(read_stored, info)), info.dtype)
    for module, part in adapter.parts.items():
        name = _name(tensors, base, adapter, f"{module}.weight")
        tensors[name] = _weight(base, adapter, module, part, tensors[name], name in turned)
        if part.bias is not None:
            name = _name(tensors, base, adapter, f"{module}.bias")
            tensors[name] = _bias(part, tensors[name])
    return tensors, said


def form_of(base: Checkpoint, adapter: Adapter) -> Form:
    """How the files of a merged model store it."""
    under = f"{base.form.words} and " if base.form else ""
    stored = base.stored | {f"adapter: {name}": info for name, info in adapter.stored.items()}
    return Form(f"{under}{adapter.words}", stored, {"base": base.form.recipe if base.form else None} | adapter.recipe)


def _own_head(base: Checkpoint, adapter: Adapter) -> tuple[dict[str, TensorInfo], dict[str, Any]]:
    """The base's tensors with a head of its own where the adapter parts it from the table that it is tied to, and what
    that makes of the config."""
    tensors = dict(base.tensors)
    table = next((weight.tensor for weight in base.weights if weight.role == "embed"), None)
    head = next(iter(base.tied), None)
    if table is None or base.kind != "causal" or any(weight.role == "head" for weight in base.weights):
        return tensors, {}
    head = head or HEAD
    changed = {f".{module}.weight" for module in adapter.parts}
    if any(each.endswith((f".{table}", f".{head}")) for each in changed):
        tensors[head] = _alike(tensors[table])
        return tensors, {"tie_word_embeddings": False}
    new_table, new_head = (_whole(adapter, name) for name in (table, head))
    saved = table.split(".")[-2] in (adapter.settings.get("modules_to_save") or ())
    alone = saved and new_table is not None and new_table.shape == tensors[table].shape
    if new_head is None and not alone:  # nothing, or a table of more tokens, which the head goes with
        tensors.pop(head, None)
        return tensors, {}
    tensors[head] = _alike(tensors[table])
    tied = new_head is not None and new_table is not None and _same(new_head, new_table)
    return tensors, {} if tied else {"tie_word_embeddings": False}


def _whole(adapter: Adapter, name: str) -> TensorInfo | None:
    return next((info for parameter, info in adapter.whole.items() if f".{parameter}".endswith(f".{name}")), None)


def _alike(info: TensorInfo) -> TensorInfo:
    """The same values under another name, which no file has."""
    return opened(info, info.shape, _made(lambda: _value(info)), info.dtype)


def _same(one: TensorInfo, other: TensorInfo) -> bool:
    alike = (one.dtype, one.shape) == (other.dtype, other.shape)
    return alike and all(mine == theirs for mine, theirs in zip(chunks(one), chunks(other), strict=True))


def _name(tensors: dict[str, TensorInfo], base: Checkpoint, adapter: Adapter, parameter: str) -> str:
    """The tensor that an adapter's name means: peft counts from the class with a head, files may begin further in."""
    if parameter in tensors:
        return parameter
    words = parameter.split(".")
    shorter = [name for first in range(1, len(words) - 1) if (name := ".".join(words[first:])) in tensors]
    longer = [name for name in tensors if name.endswith(f".{parameter}")]
    if not shorter and len(longer) != 1:
        raise InputError(
            f"{adapter.folder} changes {parameter}, which {base.name} does not have: it is an adapter of another model."
        )
    return (shorter or longer)[0]


def _other(base: Checkpoint, adapter: Adapter, name: str, ours: tuple, theirs: tuple) -> InputError:
    sides = [" × ".join(f"{side:,}" for side in shape) for shape in (ours, theirs)]
    return InputError(
        f"{adapter.folder} changes {name} as a tensor of {sides[0]}, and that of {base.name} has {sides[1]}: it is an "
        "adapter of another model."
    )


def _made(whole: "Callable[[], torch.Tensor]") -> "Callable[[int | None], torch.Tensor]":
    return lambda index: whole() if index is None else whole()[index]


def _value(info: TensorInfo) -> "torch.Tensor":
    return info.make(None) if isinstance(info, OpenedTensor) else read_stored(info)


def _weight(
    base: Checkpoint, adapter: Adapter, module: str, part: Part, before: TensorInfo, turned: bool
) -> TensorInfo:
    shape = part.shape[::-1] if turned else part.shape
    if before.shape != shape:
        raise _other(base, adapter, module, shape, before.shape)

    def merged() -> "torch.Tensor":
        import torch

        weight = _value(before).float()
        weight = (weight.T if turned else weight) + part.update()
        if part.magnitude is not None:
            lengths = weight.flatten(1).norm(dim=1)
            scale = read_stored(part.magnitude).float().flatten() / lengths
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        return (weight.T if turned else weight).to(getattr(torch, FLOATS[before.dtype])).contiguous()

    return opened(part.left, shape, _made(merged), before.dtype)


def _bias(part: Part, before: TensorInfo) -> TensorInfo:
    bias = part.bias
    assert bias is not None

    def shifted() -> "torch.Tensor":
        value = _value(before)
        return (value.float() + part.scale * read_stored(bias).float()).to(value.dtype)

    return opened(bias, before.shape, _made(shifted), before.dtype)
