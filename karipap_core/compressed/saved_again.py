"""A compressed folder that another program has saved again: by `save_pretrained`, after a fine-tune, for the hub.

transformers then casts all numbers that are not packed to the dtype in which the model was loaded, says that in
config.json, may add the model's prefix to names or take it away, and leaves karipap.json behind.
"""

from collections import Counter
from dataclasses import dataclass

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.compressed.folder import CORE
from karipap_core.errors import InputError

WORDS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}


def entry_of(name: str, settings: dict) -> tuple[str, dict]:
    """The plan's (name, entry) of cores found under `name`, from which transformers may have saved a model's prefix
    away or to which it may have added one."""
    weights = settings["plan"]["weights"]
    for known in [name, *weights]:
        if known in weights and (known == name or known.endswith(f".{name}") or name.endswith(f".{known}")):
            return known, weights[known]
    raise InputError(f"The folder holds cores of {name}, which its plan does not know: write the folder anew.")


def names_on_disk(checkpoint: Checkpoint, settings: dict) -> dict[str, str]:
    """The plan's name of each weight with cores in a folder → its name there. Raises InputError as `entry_of` does."""
    found = {core[1] for core in map(CORE.fullmatch, checkpoint.tensors) if core}
    return {entry_of(name, settings)[0]: name for name in sorted(found)}


def new_dtype(checkpoint: Checkpoint, settings: dict) -> str | None:
    """The dtype as which a folder's numbers were saved again ("bfloat16"), None where they are as they were written.

    Plain cores tell; where all are packed, config.json, if most of the other numbers are what it says.
    """
    said = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype"))
    if said not in WORDS or said == (settings.get("original") or {}).get("dtype"):
        return None
    plain: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for name, info in checkpoint.tensors.items():
        if info.dtype in WORDS.values():
            core = CORE.fullmatch(name)
            if core is None:
                others[info.dtype] += 1
            elif name.endswith(f".cores.{core[2]}"):  # and no part of a packed one
                plain[info.dtype] += 1
    kinds = set(plain) if plain else {each for each, _ in others.most_common(1)}
    return said if kinds == {WORDS[said]} else None


@dataclass(frozen=True)
class Again:
    """A folder that was saved again: the dtype that its numbers were cast to, None where they were not, and the plan's
    name of each weight → its name in the folder."""

    dtype: str | None
    names: dict[str, str]

    @property
    def said(self) -> str:
        return f", in {self.dtype}" if self.dtype else ""


def saved_again(checkpoint: Checkpoint, settings: dict) -> Again | None:
    """How a folder was saved again, None where names and dtypes are those that it was written with."""
    try:
        names = names_on_disk(checkpoint, settings)
    except InputError:  # cores of another plan: no saving does that
        return None
    dtype = new_dtype(checkpoint, settings)
    return Again(dtype, names) if dtype or any(name != here for name, here in names.items()) else None


def as_saved(checkpoint: Checkpoint, settings: dict) -> dict:
    """The folder's settings with the dtype that its numbers have now in the place of the one that they had."""
    dtype, original = new_dtype(checkpoint, settings), settings.get("original") or {}
    if dtype is None:
        return settings
    config = [field for field in original.get("config", ()) if field != "dtype"]  # what it says now is not ours
    return settings | {"original": original | {"dtype": dtype, "dtypes": {}, "config": config}}
