"""How a GGUF file says that positions are rotated, as fields of config.json."""

import math
from typing import Any

import numpy as np

from karipap_core.checkpoint.gguf.header import Header
from karipap_core.checkpoint.gguf.values import read_values
from karipap_core.errors import InputError

SCALING = {  # entry → field of rope_scaling
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
    "yarn_ext_factor": "",
    "yarn_attn_factor": "",
    "yarn_log_multiplier": "",
    "attn_factor": "",
    "finetuned": "",
    "type": "",
}
# Llama 3.1 and later divide slow frequencies by a factor that the file has only as the divisors. Tried are its own
# bounds with every length of training that is a power of two.
LOW, HIGH = 1.0, 4.0
LENGTHS = [1 << power for power in range(5, 21)]
CLOSE = 1e-4
MOST_THETA = 1e12  # of a base of frequencies that is believed


def rope_of(header: Header, plain: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Fields of config.json for the scaling of rotary frequencies; `plain` are the architecture's entries. Raises
    InputError for a rule that is not known here."""
    said = {key.removeprefix("rope.scaling."): value for key, value in plain.items() if key.startswith("rope.scaling.")}
    if "rope.scale_linear" in plain:  # how files of 2023 say it
        said = {"type": "linear", "factor": plain["rope.scale_linear"]} | said
    if unknown := sorted(set(said) - SCALING.keys()):
        raise InputError(f"{header.file} scales rotary frequencies by {unknown[0]}, which is not known here.")
    scaling = {field: said[key] for key, field in SCALING.items() if field and key in said}
    divisors = _factors(header, "rope_freqs.weight")
    if divisors is not None and any(abs(divisor - 1) > CLOSE for divisor in divisors):
        return {"rope_scaling": _llama3(header, divisors, config)}
    long, short = _factors(header, "rope_factors_long.weight"), _factors(header, "rope_factors_short.weight")
    if long is not None and short is not None:
        length = said.get("original_context_length", config["max_position_embeddings"])
        fields = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        return {"rope_scaling": fields, "original_max_position_embeddings": length}
    kind = said.get("type", "linear" if "factor" in said else "none")
    if kind == "linear":
        return {"rope_scaling": {"rope_type": "linear", "factor": scaling.get("factor", 1.0)}}
    if kind == "yarn":
        return {"rope_scaling": {"rope_type": "yarn", **scaling, **config.get("rope_scaling", {})}}
    if kind != "none":
        raise InputError(f"{header.file} scales rotary frequencies by the rule {str(kind)[:40]}, not known here.")
    length = said.get("original_context_length")  # Phi 3 has it without a rule
    return {"rope_scaling": None} | ({"original_max_position_embeddings": length} if length else {})


def _factors(header: Header, tensor: str) -> list[float] | None:
    info = header.tensors.get(tensor)
    return None if info is None else [decimal(value) for value in read_values(info).flatten().tolist()]


def decimal(value: float) -> float:
    """The shortest decimal that stands for a float of 32 bits, as the model's own config.json had it."""
    return float(str(np.float32(value)))


def _llama3(header: Header, divisors: list[float], config: dict[str, Any]) -> dict[str, Any]:
    """The settings of Llama 3's rule that give these divisors."""
    theta, factor = config.get("rope_theta", 10_000.0), max(divisors)
    known = isinstance(theta, int | float) and 1 <= theta < MOST_THETA and 1 <= factor < MOST_THETA
    waves = [2 * math.pi * theta ** (index / len(divisors)) for index in range(len(divisors))] if known else []
    for length in LENGTHS if known else ():
        given = [divisor(length / wave, factor) for wave in waves]
        if all(abs(ours - theirs) <= CLOSE * theirs for ours, theirs in zip(given, divisors, strict=True)):
            fields = {"rope_type": "llama3", "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH}
            return fields | {"original_max_position_embeddings": length}
    raise InputError(f"{header.file} divides rotary frequencies (rope_freqs.weight) by a rule that is not known here.")


def divisor(turns: float, factor: float) -> float:
    """What Llama 3's rule divides a frequency by that turns so often within the length of training."""
    if turns < LOW or turns > HIGH:
        return factor if turns < LOW else 1.0
    smooth = (turns - LOW) / (HIGH - LOW)
    return 1 / ((1 - smooth) / factor + smooth)
