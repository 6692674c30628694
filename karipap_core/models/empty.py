"""A checkpoint as an empty model: its config.json and its tensors held against each other, before anything is loaded.

transformers fills parameters that a file lacks with random numbers and passes over tensors that the model has no place
for; both show in a report alone. Here both are errors, found without reading a weight: the tensors are loaded as empty
ones of the same names, types and shapes on the meta device, by the very rules that transformers loads real ones with.
"""

import codecs
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch

from karipap_core.checkpoint.kinds import kind_of
from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.open import check_types
from karipap_core.checkpoint.roles import place, role_of
from karipap_core.checkpoint.tensorfile import TORCH
from karipap_core.errors import Cancelled, InputError
from karipap_core.models.classes import class_of
from karipap_core.reading import open_file
from karipap_core.terminal import shortened

if TYPE_CHECKING:  # transformers is imported where a model is made
    from transformers import PretrainedConfig, PreTrainedModel

MOST_LAYERS = 1024  # of a config that are believed: the largest models have 126
LONGEST = 240  # characters of what a library says that are passed on
MOST = 1 << 24  # of the other sizes
SIZES: tuple[str, ...] = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim")
SIZES += ("num_key_value_heads", "num_local_experts", "n_routed_experts", "num_experts")
SIZES += ("num_experts_per_tok", "n_embd", "n_head", "d_model", "ffn_dim")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
LIMITS = dict.fromkeys(SIZES, MOST) | dict.fromkeys(LAYERS, MOST_LAYERS)
LIMITS |= dict.fromkeys(
    ("max_position_embeddings", "n_positions", "sliding_window"), 1 << 40
)  # nothing of this length need be built
DTYPES = ("float32", "bfloat16", "float16", "float64")
WHOLE: tuple[str, ...] = ("F8_E4M3", "F8_E5M2", "F4")  # floats too that stand for nothing without scales
WHOLE += ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "C64")
MAY_BE_ZERO: tuple[str, ...] = ("intermediate_size", "ffn_dim", "head_dim")  # of a model that has none
MAY_BE_ZERO += ("num_local_experts", "n_routed_experts", "num_experts", "num_experts_per_tok")


def check_config(document: dict, name: str) -> None:
    """Raises InputError for a config.json's contents with sizes that no model has, before a library believes them."""
    if not isinstance(document.get("model_type"), str):
        raise InputError(f"The config of {name} does not say model_type: is it a model's config.json?")
    for table in (document, *(value for value in document.values() if isinstance(value, dict))):
        for field, limit in LIMITS.items():
            value, least = table.get(field), int(field not in MAY_BE_ZERO)
            unused = field == "sliding_window" and table.get("use_sliding_window") is False
            if value is None or unused or isinstance(value, list):  # some families have one for each layer
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= limit:
                said = json.dumps(value)[:40]
                raise InputError(
                    f"The config of {name}: {field} is {said}, not a whole number from {least} to {limit:,}."
                )
        _check_counts(table, name)
        theta = table.get("rope_theta", 1)
        unsaid = theta is None and table is document  # a model without rotations
        if not unsaid and (not isinstance(theta, int | float) or isinstance(theta, bool) or theta <= 0):
            raise InputError(f"The config of {name}: rope_theta is {json.dumps(theta)[:40]}, not a number above 0.")


def _check_counts(table: dict, name: str) -> None:
    """Raises InputError for numbers of a config.json that are each in order, and together are no model's."""
    heads, shared = table.get("num_attention_heads"), table.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
        raise InputError(
            f"The config of {name}: num_attention_heads is {heads}, no multiple of num_key_value_heads, {shared}."
        )
    experts, chosen = table.get("num_local_experts"), table.get("num_experts_per_tok")
    if isinstance(experts, int) and isinstance(chosen, int) and not min(experts, 1) <= chosen <= experts:
        raise InputError(f"The config of {name}: num_experts_per_tok is {chosen}, of num_local_experts {experts}.")


def config_of(document: dict, name: str = "model") -> "PretrainedConfig":
    """transformers' config of a config.json's contents. Raises InputError where it does not know the architecture, and
    for numbers that no model has."""
    from transformers import AutoConfig

    fields = _read(document)
    check_types(document, f"The config of {name}")
    check_config(document, name)
    with config_explained(name, document):
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    check_text(config, name)
    return config


def _read(document: dict) -> dict[str, Any]:
    """What a config is made of, a copy. transformers writes a float that JSON lacks as {"__float__": "Infinity"}."""

    def read(value: Any) -> Any:
        if isinstance(value, dict):
            if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
                return float(value["__float__"])
            return {key: read(part) for key, part in value.items()}
        return [read(part) for part in value] if isinstance(value, list) else value

    return {key: read(value) for key, value in document.items() if key not in ("auto_map", "quantization_config")}


def from_config(config: "PretrainedConfig", document: dict, name: str) -> "PreTrainedModel":
    """The model of a config alone, every parameter with its shape and none with memory. Raises InputError where
    transformers cannot build it."""
    with config_explained(name, document), torch.device("meta"):
        return class_of(config, kind_of(document, True), name)._from_config(config)


def empty_model(checkpoint: Checkpoint) -> "PreTrainedModel":
    """The model of a checkpoint, dense or compressed, without its weights (on the meta device).

    Raises InputError where config.json and tensors do not fit: a parameter that no tensor gives, a tensor of another
    shape, one in a block that the model has no place for; and where transformers cannot build what the config
    describes.
    """
    name = checkpoint.name
    if checkpoint.missing:
        raise InputError(checkpoint.missing)
    if not checkpoint.config:
        raise InputError(f"{name} has no config.json, so no model can be made of it: add the file.")
    check_config(checkpoint.config, name)
    dtype = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or DTYPES[0]
    if dtype not in DTYPES:
        raise InputError(f"The config of {name}: dtype {json.dumps(dtype)[:40]} is not one of {', '.join(DTYPES)}.")
    with open_file(checkpoint.home / "config.json") as file:
        if file.read(3) == codecs.BOM_UTF8:
            raise InputError(
                f"{checkpoint.home / 'config.json'} begins with a byte order mark, which transformers does not read: "
                "save it as UTF-8 without one."
            )
    if not checkpoint.compressed:  # experts that are compressed may differ
        _check_experts(checkpoint)
    with quiet(), config_explained(name, checkpoint.config):
        config = live_config(checkpoint)
        check_text(config, name)
        with torch.device("meta"):
            model = class_of(config, checkpoint.kind or "encoder", name)._from_config(config)
        _check_layers(checkpoint, model)
        model, found = type(model).from_pretrained(
            None,
            config=config,
            state_dict=_empty_tensors(checkpoint),
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
        )
    _check_fit(checkpoint, model, found)
    return model.eval()


def live_config(checkpoint: Checkpoint) -> "PretrainedConfig":
    """transformers' config of a checkpoint: from the file that is there, or, where another stored form was opened, from
    what that left."""
    from transformers import AutoConfig

    if checkpoint.form is not None:
        return config_of(checkpoint.config, checkpoint.name)
    return AutoConfig.from_pretrained(checkpoint.home, local_files_only=True, trust_remote_code=False)


def check_text(config: "PretrainedConfig", name: str) -> None:
    """Raises InputError for a config with another one within it that its family does not have."""
    if isinstance(config.get_text_config(decoder=True), dict):
        raise InputError(
            f"The config of {name} has a text_config, which a {config.model_type} has no place for: take it out."
        )


def _check_layers(checkpoint: Checkpoint, model: "PreTrainedModel") -> None:
    """Raises InputError for more layers than are stored, before transformers takes the time to fill them in."""
    stored = max((layer for name in checkpoint.tensors if (layer := place(name)[0]) is not None), default=-1)
    for name, _ in model.named_parameters():
        if (layer := place(name)[0]) is not None and layer > stored:
            fields = {field: checkpoint.config.get(field) for field in LAYERS}
            said = [f"{field} {value}" for field, value in fields.items() if value and value > stored + 1]
            if stored >= 0 and not said:
                continue  # other things are numbered too, and under other names in the file
            raise InputError(
                f"{checkpoint.name} has layers 0 to {stored} in the file and more by config.json ({said[0]}): file and "
                "config are not of one model."
                if stored >= 0
                else f"{checkpoint.name} lacks parameter {name} of a {type(model).__name__}: fetch it again."
            )


def _empty_tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    def dtype(word: str) -> torch.dtype:
        return getattr(torch, TORCH.get(word, "float32"))

    return {
        name: torch.empty(info.shape, dtype=dtype(info.dtype), device="meta")
        for name, info in checkpoint.tensors.items()
    }


def _check_experts(checkpoint: Checkpoint) -> None:
    """Raises InputError where one of a layer's experts lacks a weight that others have, or has it of another shape:
    transformers stacks them while it loads, and says no more than that this failed."""
    layers: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {}
    for name, info in checkpoint.tensors.items():
        layer, _, rest = name.partition(".experts.")
        number, _, weight = rest.partition(".")
        if number.isdecimal():
            layers.setdefault(layer, {}).setdefault(weight, {})[number] = info.shape
    for layer, weights in layers.items():
        for number in sorted(set().union(*weights.values()), key=int):
            for weight, shapes in weights.items():
                name, usual = f"{layer}.experts.{number}.{weight}", max(shapes.values(), key=[*shapes.values()].count)
                zero = checkpoint.config.get("zero_expert_num") and int(number) > max(map(int, shapes))
                if number not in shapes and not zero:  # the last ones give tokens back as they are
                    raise InputError(f"{checkpoint.name} lacks {name}, which other experts have: fetch it again.")
                if shapes.get(number, usual) != usual:
                    raise InputError(
                        f"{checkpoint.name}: {name} is {_by(shapes[number])}, and that of other experts {_by(usual)}: "
                        "fetch it again."
                    )


def _check_fit(checkpoint: Checkpoint, model: "PreTrainedModel", found: dict[str, Any]) -> None:
    """Raises InputError for the first fault in what transformers reports of loading a checkpoint into a model."""
    architecture = type(model).__name__
    for name, stored, wanted in sorted(found["mismatched_keys"]):
        raise InputError(
            f"{checkpoint.name}: {name} is {_by(stored)} in the file and {_by(wanted)} by config.json"
            f"{_fields(checkpoint.config, stored, wanted)}: file and config are not of one model."
        )
    # A checkpoint of a model with a head often has no pooler; nothing here looks at what comes out of it.
    missing = [name for name in found["missing_keys"] if "pooler" not in name]
    # A head may be missing only because the table that it is tied to is.
    missing.sort(key=lambda name: (role_of(name.removesuffix(".weight"), False) == "head", name))
    unexpected, buffers = set(found["unexpected_keys"]), checkpoint.buffers
    if missing:
        others = sorted(unexpected - buffers)
        raise InputError(
            f"{checkpoint.name} lacks parameter {missing[0]} of a {architecture} and holds {others[0]}, which that has "
            "no place for: its tensors have other names, or its config.json is another model's."
            if others
            else f"{checkpoint.name} lacks parameter {missing[0]} of a {architecture}: fetch it again."
        )
    for name in _whole(checkpoint, model) - unexpected - buffers:
        info = checkpoint.tensors[name]
        if not checkpoint.compressed:
            raise InputError(
                f"{checkpoint.name}: {name} is stored as {info.dtype}, and no quantization_config says what these "
                "stand for: give the model in 16 or 32 bits."
            )
    for name in sorted(unexpected - buffers):
        scale = name in checkpoint.tensors and checkpoint.tensors[name].items <= 1
        if place(name)[0] is not None and not scale:
            raise InputError(
                f"{checkpoint.name} holds {name}, which a {architecture} by its config.json has no place for: "
                "file and config are not of one model."
            )


def _whole(checkpoint: Checkpoint, model: "PreTrainedModel") -> set[str]:
    """The tensors that are stored as whole numbers, and that the model does not hold as such (tables of places …)."""
    from karipap_core.models.names import Names

    stored = {name for name, info in checkpoint.tensors.items() if info.dtype in WHOLE}
    if not stored:
        return stored
    names = Names(model, checkpoint.tensors)
    held = [*model.named_buffers(), *model.named_parameters()]
    whole = {name for name, tensor in held if not tensor.is_floating_point()}
    return {name for name in stored if names.live(name)[0] not in whole}


def _by(shape) -> str:
    return " × ".join(str(side) for side in shape) or "one number"


def _fields(config: dict, stored, wanted) -> str:
    """Which fields of a config say the sides that differ: " (vocab_size 262)"."""
    sides = {there for here, there in zip(stored, wanted, strict=False) if here != there}
    said = [f"{key} {value}" for key, value in config.items() if key in LIMITS and value in sides]
    return f" ({', '.join(said)})" if said else ""


def reason(error: Exception) -> str:
    """What a library's error says, in one line: behind the lines that only lead to it, and without its details."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if not line.endswith(":")), lines[0] if lines else "")
    kind, _, rest = line.partition(": ")  # "ValueError: …" within the message of another error
    line = rest if kind.isidentifier() and kind.endswith("Error") else line
    line = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", line.partition(". Errors: ")[0])
    return shortened(line if " " in line else f"{type(error).__name__} {line}".strip(), LONGEST)


@contextmanager
def explained(sentence: str) -> Iterator[None]:
    """Turns what a library raises into one sentence, which begins with `sentence` and goes on with what it said."""
    try:
        yield
    except (InputError, Cancelled):
        raise
    except Exception as error:  # what is not a model's is told in many ways
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise
        if "MemoryError" in str(error):  # of an import within, which transformers tells as one of its own
            raise MemoryError from error
        raise InputError(f"{sentence}: {reason(error)}") from error


@contextmanager
def config_explained(name: str, document: dict) -> Iterator[None]:
    """One sentence for a config that transformers cannot use: what it said, and the field of `document` that is to
    blame, where it names none."""
    sentence = f"The config of {name} is of no model that transformers can build"
    try:
        with explained(sentence):
            yield
    except InputError as error:
        cause = error.__cause__
        if not isinstance(cause, Exception) or any(field in str(cause) for field in document):
            raise
        field = _blamed(document)
        if field is None:
            raise
        said = shortened(json.dumps(document[field]), 40)
        raise InputError(f"{sentence} (its {field} is {said}): {reason(cause)}") from cause


def _blamed(document: dict) -> str | None:
    """The first field of a config.json without which it could be built: None where no single one is to blame. Sizes are
    left out: they have no default that would fit the others."""
    from transformers import AutoConfig, AutoModel

    fields = _read(document)
    for field in (None, *fields):
        if field in LIMITS or field in ("model_type", "architectures"):
            continue
        rest = {key: deepcopy(value) for key, value in fields.items() if key != field}  # transformers fills some in
        with suppress(Exception), quiet(), torch.device("meta"):
            AutoModel.from_config(AutoConfig.for_model(rest.pop("model_type"), **rest))
            return field
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, reports or warnings of libraries: standard error belongs to our own progress."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():  # torch's, of tensors that have no numbers
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
