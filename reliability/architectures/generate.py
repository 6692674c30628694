"""A tiny checkpoint of an architecture, written as transformers saves one."""

from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from reliability.architectures.care import CARE, START
from reliability.architectures.listing import Architecture
from reliability.architectures.shrink import POSITIONS, REPAIRS, WIDTH, shrunk

MOST_PARAMETERS = 20_000_000  # of what is still called tiny
OWN = ("model_type", "transformers_version", "torch_dtype", "dtype", "architectures")
BANDS = ("num_mel_bins", "feature_size", "n_mels", "input_feat_per_channel", "input_feat_size")
TOKENS, BYTES = 16, 250
WITHOUT_CACHE = {"use_cache": False}


class NotBuilt(Exception):
    """Why an architecture has no tiny checkpoint."""


def make(architecture: Architecture, folder: Path) -> Path:
    """Writes the checkpoint into `folder` and returns that, at once where it is there. Raises NotBuilt where no repair
    gives a model that can be built, and run on what it reads."""
    if (folder / "made").exists():
        return folder
    model, inputs = _first_that_runs(architecture)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = None  # generation goes on to the length that is asked for
    model.save_pretrained(folder)
    save_file(inputs, folder / "made")
    return folder


def inputs_in(folder: Path) -> dict[str, torch.Tensor]:
    """What the model in a folder of `make` was run on."""
    return load_file(folder / "made")


def _first_that_runs(architecture: Architecture) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    failure = ""
    for repairs in range(1, len(REPAIRS) + 1):
        try:
            model = _built(architecture, config_of(architecture, repairs))
            return model, _inputs(model)
        except NotBuilt as error:
            raise error
        except Exception as error:  # transformers says in many ways that sizes do not fit
            said = str(error).strip().splitlines()
            failure = f"{type(error).__name__}: {' '.join(said)[:200]}"
    raise NotBuilt(failure)


def config_of(architecture: Architecture, repairs: int = 1) -> PretrainedConfig:
    """The tiny config of an architecture, after so many of `REPAIRS`."""
    kind = CONFIG_MAPPING[architecture.name]
    default = kind(**START.get(architecture.name, {})).to_dict()
    tiny = shrunk({field: value for field, value in default.items() if field not in OWN})
    for repair in REPAIRS[:repairs]:
        tiny = repair(tiny)
    config = kind.from_dict(_merged(tiny, CARE.get(architecture.name, {})))
    config.architectures = [architecture.class_name]
    return config


def _merged(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    found = dict(table)
    for field, value in changes.items():
        both = isinstance(value, dict) and isinstance(found.get(field), dict)
        found[field] = _merged(found[field], value) if both else value
    return found


def class_of(architecture: Architecture) -> type[PreTrainedModel]:
    return getattr(transformers, architecture.class_name)


def _built(architecture: Architecture, config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.device("meta"):
        empty = class_of(architecture)(deepcopy(config))
    size = sum(parameter.numel() for parameter in empty.parameters())
    if size > MOST_PARAMETERS:
        largest, parameter = max(empty.named_parameters(), key=lambda item: item[1].numel())
        raise NotBuilt(f"{size:,} parameters are left, most in {largest} {tuple(parameter.shape)}")
    model = class_of(architecture)(config).eval().float()
    disturb(model)
    return model


def disturb(model: torch.nn.Module) -> None:
    """Adds random numbers to every parameter: what is zero or one at the start would hide faults."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel():
                scale = 0.1 if parameter.dim() < 2 else 0.5 * parameter.shape[-1] ** -0.5
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def outputs_of(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first tensor that a model puts out."""
    torch.manual_seed(0)  # of models that draw
    with torch.no_grad():
        found = model(**inputs, **(WITHOUT_CACHE if "use_cache" in signature(model.forward).parameters else {}))
    found = found[0] if not torch.is_tensor(found) else found
    if not torch.is_tensor(found) or not found.isfinite().all():
        raise ValueError("puts out no numbers")
    return found


def _inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The least that a model can be run on: ids, or an image, or sound, or two of them."""
    failures = []
    for inputs in _candidates(model):
        try:
            outputs_of(model, inputs)
            return inputs
        except Exception as error:  # whatever a model says of inputs that it does not take
            failures.append(error)
    raise failures[-1]


def _candidates(model: PreTrainedModel) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    config, taken = model.config, set(signature(model.forward).parameters)
    known = min(getattr(config.get_text_config(), "vocab_size", None) or BYTES, BYTES)
    ids = {"input_ids": torch.randint(known // 8, known, (2, TOKENS), generator=generator)}
    decoder = {"decoder_input_ids": ids["input_ids"].clone()}
    image = {"pixel_values": torch.randn(2, *_image(config), generator=generator)}
    bands, frames = _spectrogram(config)
    features = {"input_features": torch.randn(2, bands, frames, generator=generator)}
    turned = {"input_features": features["input_features"].transpose(1, 2).contiguous()}
    wave = {"input_values": torch.randn(2, 3200, generator=generator)}
    boxes = {"bbox": torch.randint(0, 20, (2, TOKENS, 1), generator=generator).expand(-1, -1, 4).contiguous()}
    question = {"qformer_input_ids": ids["input_ids"].clone()}
    single = [ids, image, features, turned, wave, wave | {"input_values": wave["input_values"][:, None]}]
    single += [ids | boxes, ids | image, ids | image | question, ids | features, ids | image | boxes]
    single += [ids | {"pixel_values": image["pixel_values"][:, None]}]
    single += [{"pixel_values": image["pixel_values"][:, None].repeat(1, 4, 1, 1, 1)}]
    both = [each | decoder for each in single] if "decoder_input_ids" in taken else []
    return [each for each in both + single if each.keys() <= taken or len(each) == 1]


def _image(config: PretrainedConfig) -> tuple[int, int, int]:
    for part in (config, getattr(config, "vision_config", None)):
        side = getattr(part, "image_size", None)
        if side is not None:
            side = side if isinstance(side, int) else side[0]
            return getattr(part, "num_channels", 3) or 3, side, side
    return 3, WIDTH // 2, WIDTH // 2


def _spectrogram(config: PretrainedConfig) -> tuple[int, int]:
    part = getattr(config, "audio_config", None) or getattr(config, "encoder_config", None) or config
    bands = next((getattr(part, name) for name in BANDS if isinstance(getattr(part, name, None), int)), WIDTH // 2)
    return bands, 2 * min(getattr(part, "max_source_positions", None) or WIDTH, POSITIONS)
