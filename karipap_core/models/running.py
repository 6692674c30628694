"""Running a live model on tokens, whatever kind it is: what goes in, and the logits or states that come out."""

import inspect
from typing import TYPE_CHECKING, Any

import torch

from karipap_core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Inputs = dict[str, torch.Tensor]
TOKENS = "input_ids"
OTHERS = ("pixel_values", "input_features", "input_values")  # of images and sound
AUDIO_SAMPLES = 16000  # of silence: a second
NO_TOKENS = "the model predicts no next token"
AHEAD = 1e-3  # by how much logits may differ, relatively, that do not depend on a token


def predicts(model: "PreTrainedModel") -> bool:
    """Whether the model has a head that predicts the next token (of a decoder, where there are two parts)."""
    return bool(model.can_generate())


def two_parts(model: "PreTrainedModel") -> bool:
    """Whether the model is an encoder and a decoder."""
    return bool(model.config.is_encoder_decoder or model.config.get_text_config().is_encoder_decoder)


def reads_text(model: "PreTrainedModel") -> bool:
    """Whether the model's (or its encoder's) input is tokens."""
    return model.main_input_name == TOKENS or TOKENS in inspect.signature(model.forward).parameters


def check_reads(model: "PreTrainedModel") -> None:
    """Raises InputError for a model that neither reads text nor is given zeros beside it."""
    if not reads_text(model) and not given_nothing(model):
        raise InputError(f"A {type(model).__name__} reads no text but {model.main_input_name}: it is not run here.")


def inputs_of(model: "PreTrainedModel", ids: torch.Tensor, more: Inputs | None = None) -> dict[str, Any]:
    """Arguments that run the model on token ids (rows, n), without a cache; `more`: what goes with them, such as the
    pixels of an image that some ids are places for (`pictures.Shown`).

    An encoder and a decoder get the same text both: the decoder behind its start token, to predict each token from
    those before it and from all that the encoder saw. An encoder that reads no text gets zeros (silence, black).
    Raises InputError for a model that reads no text at all.
    """
    accepted = inspect.signature(model.forward).parameters
    several = any(value.kind is value.VAR_KEYWORD for value in accepted.values())
    inputs: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted or several else {}
    for name, value in (more or {}).items():
        if name in accepted or several:
            inputs[name] = value.to(model.device, model.dtype if value.is_floating_point() else None)
    besides = [name for name in OTHERS if name in accepted and not predicts(model)]
    if reads_text(model) and besides:
        raise InputError(f"A {type(model).__name__} reads {besides[0]} beside text: it is not run here.")
    check_reads(model)
    if reads_text(model):
        inputs[TOKENS] = ids
        needed = [name for name in OTHERS if name in accepted and accepted[name].default is inspect.Parameter.empty]
        inputs |= {name: _nothing(model, name, len(ids)) for name in needed}
    else:
        inputs[model.main_input_name] = _nothing(model, model.main_input_name, len(ids))
    if two_parts(model) and "decoder_input_ids" in accepted:
        start = torch.full_like(ids[:, :1], _start(model))
        inputs["decoder_input_ids"] = torch.cat([start, ids[:, :-1]], dim=1)
    return inputs


def why_not(model: "PreTrainedModel") -> str | None:
    """Why a model cannot be run on text, None where it can; one that may see or hear is tried on a token."""
    try:
        inputs = inputs_of(model, torch.zeros(1, 1, dtype=torch.long, device=model.device))
    except InputError as error:
        return str(error)
    if any(name in inspect.signature(model.forward).parameters for name in OTHERS):
        try:
            with torch.no_grad():
                model(**inputs)
        except ValueError as error:  # how transformers refuses inputs
            said = str(error).partition("\n")[0].rstrip(".")
            return f"A {type(model).__name__} refuses text alone ({said}): it is not run here."
        except (
            Exception
        ):  # of an empty model, whose tensors hold nothing; of a full one, its loading says what is wrong
            return None
    return None


def logits(model: "PreTrainedModel", ids: torch.Tensor, more: Inputs | None = None) -> torch.Tensor:
    """Logits (rows, n, vocabulary) for ids (rows, n), and what goes with them as in `inputs_of`: at place t those of
    the token at t + 1. Of an encoder and a decoder the last place has none of its own and repeats the one before."""
    out = model(**inputs_of(model, ids, more)).logits
    return torch.cat([out[:, 1:], out[:, -1:]], dim=1) if two_parts(model) else out


def states(model: "PreTrainedModel", ids: torch.Tensor) -> torch.Tensor:
    """The last hidden states (rows, n, width) for ids (rows, n); of a decoder, where there are two parts."""
    out = model(**inputs_of(model, ids))
    hidden = getattr(out, "last_hidden_state", None)
    return out[0] if hidden is None else hidden


def output(model: "PreTrainedModel", ids: torch.Tensor) -> torch.Tensor:
    """What there is to compare of a model: `logits` of one that predicts tokens, else `states`."""
    return logits(model, ids) if predicts(model) else states(model, ids)


def sees_ahead(model: "PreTrainedModel", ids: torch.Tensor) -> bool:
    """Whether the prediction at a place changes with a later token of ids (1, n): then no loss of the next token can be
    measured. An encoder and a decoder may: the encoder sees all there is to see."""
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % model.config.get_text_config().vocab_size
    one, two = logits(model, ids)[:, :-1].float(), logits(model, other)[:, :-1].float()
    return bool((one - two).norm() > AHEAD * one.norm())


def without_cache(model: "PreTrainedModel") -> str | None:
    """Why decoding is not timed token by token behind a KV cache, None where it can be."""
    if not predicts(model):
        return NO_TOKENS
    if two_parts(model):
        return "an encoder and a decoder are not timed token by token"
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    with torch.no_grad():
        try:
            cache = model(input_ids=ids, use_cache=True).past_key_values
            model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
        except Exception as error:  # models differ in how they keep what they saw, and in what they then raise
            return f"the model has no KV cache that is handed on ({type(error).__name__})"
    return None if cache is not None else "the model gives no KV cache"


def given_nothing(model: "PreTrainedModel") -> bool:
    """Whether the model's encoder, which reads no text, is given zeros."""
    return two_parts(model) and predicts(model) and not reads_text(model)


def words_of(model: "PreTrainedModel") -> str | None:
    """A sentence on what an encoder and a decoder are given, None for other models."""
    if not (two_parts(model) and predicts(model)):
        return None
    if reads_text(model):
        return "The encoder reads the text, and the decoder is scored on the same text behind its start token."
    return (
        f"The decoder is scored on the text; its encoder, which reads {model.main_input_name}, was given zeros, so "
        "nothing is said of the encoder."
    )


def _start(model: "PreTrainedModel") -> int:
    text = model.config.get_text_config(decoder=True)
    for config in (model.config, text, getattr(model, "generation_config", None)):
        for field in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
            if isinstance(value := getattr(config, field, None), int):
                return value
    return 0


def _nothing(model: "PreTrainedModel", name: str, rows: int) -> torch.Tensor:
    """Zeros in the shape of an input that a model reads besides text, or instead of it."""
    config = model.config
    encoder = getattr(config, "encoder", getattr(config, "vision_config", config))
    shape: tuple[int, ...]
    if name == "input_features" and hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        shape = (rows, config.num_mel_bins, 2 * config.max_source_positions)
    elif name == "input_values":
        shape = (rows, AUDIO_SAMPLES)
    elif name == "pixel_values" and isinstance(getattr(encoder, "image_size", None), int):
        shape = (rows, getattr(encoder, "num_channels", 3), encoder.image_size, encoder.image_size)
    else:
        raise InputError(f"A {type(model).__name__} reads {name}, of a shape that is not known here: it is not run.")
    return torch.zeros(shape, dtype=model.dtype, device=model.device)
