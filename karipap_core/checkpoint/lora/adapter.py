"""An adapter's folder: adapter_config.json and adapter_model.safetensors, checked against each other.

Format: PEFT's `LoraConfig` and the keys of its `get_peft_model_state_dict`
(https://huggingface.co/docs/peft/developer_guides/checkpoint). The update of a module is s B A with s = α / r, or
α / √r where rsLoRA is on; r and α may be given for single modules.
"""

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karipap_core.checkpoint.files import ADAPTER, PICKLES, names_in
from karipap_core.checkpoint.tensorfile import FLOATS, TensorInfo, read_header, read_stored
from karipap_core.errors import InputError
from karipap_core.reading import read_json

if TYPE_CHECKING:  # torch takes a second to import
    import torch

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
PART = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.default)?(\.weight|\.bias)?"
)
# A parameter that stands there whole: trained itself, or a table that has other rows than the base's.
WHOLE = re.compile(r"(.+?)(?:\.modules_to_save(?:\.default)?|\.base_layer)?\.(weight|bias)")
# Fields of a LoraConfig by which a model is another than base + s B A; what they may be where they are not off.
CHANGING: dict[str, tuple] = {
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # others change the base too
    "layer_replication": (),
    "use_qalora": (),
    "alora_invocation_tokens": (),
    "trainable_token_indices": (),
    "target_parameters": (),
    "use_bdlora": (),
    "arrow_config": (),
    "kasa_config": (),
    "monteclora_config": (),
    "velora_config": (),
}
# Words of a pattern that stand for themselves or for a number; others could take for ever, or mean what nobody checks.
PATTERN = re.compile(r"\^?(?:[\w-]|\\?\.|\\d\+?|\[0-9\]\+?|\.\*|\(\.\*\\?\.\)\?)*\$?")
LONGEST, MOST_STARS = 256, 3


@dataclass(frozen=True)
class Part:
    """The update of one module: s · `left` · `right`, in the order (out, in); tables of tokens are (tokens, width).
    `magnitude` (DoRA): the length of each row of the merged weight. `bias`: what B adds, times s."""

    scale: float
    left: TensorInfo
    right: TensorInfo
    embedding: bool = False
    magnitude: TensorInfo | None = None
    bias: TensorInfo | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        if self.embedding:
            return self.right.shape[1], self.left.shape[0]
        return (self.left.shape[0], *self.right.shape[1:])

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    def factors(self) -> "tuple[torch.Tensor, torch.Tensor]":
        """(out, r) and (r, in), float32, whose product is the update."""
        left, right = (read_stored(info).float().flatten(1) for info in (self.left, self.right))
        return (right.T, left.T * self.scale) if self.embedding else (left * self.scale, right)

    def update(self) -> "torch.Tensor":
        """The update as a tensor of the module's shape, float32."""
        left, right = self.factors()
        return (left @ right).reshape(self.shape)


@dataclass(frozen=True)
class Adapter:
    """`parts`: module → its update. `whole`: parameter → what it becomes. `stored`: all tensors of the file."""

    folder: Path
    settings: dict[str, Any]
    parts: dict[str, Part] = field(default_factory=dict)
    whole: dict[str, TensorInfo] = field(default_factory=dict)
    stored: dict[str, TensorInfo] = field(default_factory=dict)

    @property
    def words(self) -> str:
        ranks = sorted({part.rank for part in self.parts.values()})
        said = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        return f"{'DoRA' if self.settings.get('use_dora') else 'LoRA'}, {said}"

    @property
    def recipe(self) -> dict[str, Any]:
        return {"scales": {module: part.scale for module, part in sorted(self.parts.items())}}


def is_adapter(path: Path) -> bool:
    """Whether a path is an adapter's folder, which holds no model of its own."""
    if not path.is_dir() or not os.path.lexists(path / ADAPTER):
        return False
    return not any(
        name.endswith(".safetensors") and not name.startswith("adapter_") or name == "model.safetensors.index.json"
        for name in os.listdir(path)
    )


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder, opened from its headers. Raises InputError for another kind than LoRA, for what changes
    a model in another way than its base plus s B A, and for a file that does not fit its config."""
    settings = read_json(folder / ADAPTER, lenient=True)
    _check(settings, folder / ADAPTER)
    names = names_in(folder)
    if WEIGHTS not in names:
        if pickled := next((name for name in names if name.startswith("adapter_") and name.endswith(PICKLES)), None):
            raise InputError(
                f"{folder} holds only pickled weights ({pickled}), which can execute code and are never read: save the "
                "adapter with safetensors first (save_pretrained of peft does)."
            )
        raise InputError(f"{folder} lacks {WEIGHTS}: fetch the adapter again.")
    stored = read_header(folder / WEIGHTS)
    found: dict[str, dict[str, TensorInfo]] = {}
    whole: dict[str, TensorInfo] = {}
    for name, info in stored.items():
        if info.dtype not in FLOATS:
            raise InputError(f"{folder / WEIGHTS}: {name} is stored as {info.dtype}, not in BF16, F16 or F32.")
        matched = PART.fullmatch(name.removeprefix(PREFIX))
        if matched:
            module, kind, suffix = matched.groups()
            found.setdefault(module, {})[f"{kind}.bias" if suffix == ".bias" else kind] = info
        elif (one := WHOLE.fullmatch(name.removeprefix(PREFIX))) and "lora_" not in name:
            whole[f"{one[1]}.{one[2]}"] = info
        else:
            raise InputError(f"{folder / WEIGHTS} holds {name}, which is no part of a LoRA that is read here.")
    if not found:
        raise InputError(f"{folder / WEIGHTS} holds no LoRA matrices: fetch the adapter again.")
    parts = {module: _part(module, infos, settings, folder) for module, infos in found.items()}
    return Adapter(folder, settings, parts, whole, stored)


def _check(settings: dict[str, Any], file: Path) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        said = str(kind)[:40] if kind else "of a kind that it does not say"
        raise InputError(f"{file.parent} is an adapter {said}; only LoRA is opened here: merge it with peft first.")
    for name, allowed in CHANGING.items():
        value = settings.get(name)
        if value and not (isinstance(value, str | bool) and value in allowed):
            raise InputError(
                f"{file} sets {name} to {str(value)[:40]}, by which a model is another than its base and s B A: merge "
                "it with peft first."
            )
    for name in ("r", "lora_alpha"):
        value = settings.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e9:
            raise InputError(f"{file}: {name} is {str(value)[:40]}, not a number above 0.")
    for name in ("rank_pattern", "alpha_pattern"):
        table = settings.get(name) or {}
        if not isinstance(table, dict):
            raise InputError(f"{file}: {name} is no table of numbers.")
        for pattern, value in table.items():
            if len(pattern) > LONGEST or pattern.count("*") > MOST_STARS or not PATTERN.fullmatch(pattern):
                raise InputError(f"{file}: {name} has the pattern {pattern[:60]!r}, which is not read here.")
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e9:
                raise InputError(f"{file}: {name} gives {pattern[:60]!r} {str(value)[:40]}, not a number above 0.")


def _part(module: str, infos: dict[str, TensorInfo], settings: dict[str, Any], folder: Path) -> Part:
    table = "lora_embedding_A" in infos or "lora_embedding_B" in infos
    words = ("lora_embedding_B", "lora_embedding_A") if table else ("lora_B", "lora_A")
    if missing := [word for word in words if word not in infos]:
        raise InputError(f"{folder / WEIGHTS} lacks {missing[0]} of {module}: fetch the adapter again.")
    left, right = (infos[word] for word in words)
    rank = _of(settings, "rank_pattern", module, settings["r"])
    shapes = (left.shape, right.shape)
    if len(left.shape) < 2 or len(right.shape) < 2 or left.shape[1] != rank or right.shape[0] != rank:
        raise InputError(f"{folder}: {module} has matrices of {shapes}, and its config says rank {rank}.")
    if any(side != 1 for side in left.shape[2:]):
        raise InputError(f"{folder}: {module} has a B of {left.shape}, which is not read here.")
    if table and settings.get("use_dora"):
        raise InputError(f"{folder}: {module} is a table of tokens with DoRA, which is not read here.")
    magnitude = infos.get("lora_magnitude_vector")
    if bool(settings.get("use_dora")) != (magnitude is not None):
        raise InputError(f"{folder}: {module} has a magnitude where its config says none, or none where it does.")
    alpha = _of(settings, "alpha_pattern", module, settings["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return Part(scale, left, right, table, magnitude, infos.get("lora_B.bias"))


def _of(settings: dict[str, Any], table: str, module: str, usual: Any) -> Any:
    """The rank or α of a module: that of the first pattern that its name ends in."""
    patterns = settings.get(table) or {}
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), usual)
