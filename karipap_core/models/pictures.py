"""Images and their captions as one model takes them, through the model's own processor."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.errors import InputError
from karipap_core.images import Images
from karipap_core.models import running
from karipap_core.models.empty import explained, quiet
from karipap_core.reading import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
ASKED = "Describe this image."


@dataclass(frozen=True)
class Shown:
    """An image with text as a model takes it: token ids (1, n) with a place for each part of the image, all else that
    the processor makes (`more`), and which of the tokens are text that is predicted from those before (n,)."""

    ids: torch.Tensor
    more: dict[str, torch.Tensor]
    scored: torch.Tensor

    @property
    def before(self) -> torch.Tensor:
        """The places at which scored tokens are predicted."""
        return self.scored.nonzero().flatten() - 1

    @property
    def targets(self) -> torch.Tensor:
        """The scored tokens."""
        return self.ids[0, self.scored]


def shown(model: "PreTrainedModel", checkpoint: Checkpoint, images: Images) -> list[Shown]:
    """Each image with its caption, or with a plain prompt where it has none.

    Scored is the caption; of an image without one, all text behind the image. Raises InputError where the model takes
    no images, its folder has no processor, or the processor cannot make anything of them.
    """
    if not running.predicts(model) or running.two_parts(model):
        raise InputError(f"{checkpoint.name} writes no text about images: give none.")
    processor = processor_of(checkpoint)
    found = []
    for file, caption, image in zip(images.files, images.captions, images.load(), strict=True):
        with quiet(), explained(f"The processor of {checkpoint.name} cannot take image {file}"):
            found.append(_one(model, processor, image, caption))
    return found


def processor_of(checkpoint: Checkpoint) -> Any:
    """The processor of images and text in a checkpoint's folder: a class of transformers alone, without its part for
    videos, which needs torchvision. Raises InputError where there is none or it cannot be loaded."""
    import transformers

    home = checkpoint.home
    if not any((home / name).is_file() for name in PROCESSOR_FILES):
        raise InputError(
            f"The folder of {checkpoint.name} has no processor for images ({' or '.join(PROCESSOR_FILES)}): put the "
            "original model's beside it, or give no images."
        )
    name = _class_name(checkpoint.config, home)
    found = getattr(transformers, name, None) if name.isidentifier() else None
    if not isinstance(found, type) or not issubclass(found, transformers.ProcessorMixin):
        raise InputError(f"{checkpoint.name} names no processor of transformers ({name or 'none'}): give no images.")
    kinds = [part for part in found.get_attributes() if "video" not in part]
    still: Any = type(name, (found,), {"get_attributes": classmethod(lambda cls: kinds)})
    with quiet(), explained(f"The processor of {checkpoint.name} cannot be loaded by transformers"):
        return still.from_pretrained(home, local_files_only=True, trust_remote_code=False)


def _class_name(config: dict[str, Any], home: Path) -> str:
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    for file in (*PROCESSOR_FILES, "tokenizer_config.json"):
        if (home / file).is_file() and isinstance(
            name := read_json(home / file, lenient=True).get("processor_class"), str
        ):
            return name
    return str(PROCESSOR_MAPPING_NAMES.get(str(config.get("model_type"))) or "")


def _one(model: "PreTrainedModel", processor: Any, image: Any, caption: str | None) -> Shown:
    asked, whole = _texts(processor, caption)
    taken = dict(processor(images=[image], text=[whole], return_tensors="pt"))
    ids = taken.pop("input_ids")
    start = processor(images=[image], text=[asked], return_tensors="pt")["input_ids"].shape[1] if caption else 0
    last = _last_place_of(processor, model, ids[0])
    scored = torch.zeros(ids.shape[1], dtype=torch.bool)
    scored[max(start, last + 1, 1) :] = True
    if not scored.any():
        raise ValueError("it leaves no token of text behind the image")
    more = {key: value for key, value in taken.items() if isinstance(value, torch.Tensor) and key != "attention_mask"}
    return Shown(ids, more, scored)


def _texts(processor: Any, caption: str | None) -> tuple[str, str]:
    """(what stands before the caption, that and the caption); by the processor's chat template where it has one."""
    if getattr(processor, "chat_template", None):
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASKED}]}
        asked = processor.apply_chat_template([user], add_generation_prompt=True)
        return asked, asked + (caption or "")
    token = getattr(processor, "boi_token", None) or _image_token(processor)
    tokenizer = processor.tokenizer
    around = [getattr(processor, name, None) for name in ("vision_start_token", "vision_end_token")]
    known = tokenizer.get_vocab()
    begin, end = (mark if mark in known else "" for mark in around)
    asked = f"{begin}{token}{end}\n"
    return asked, asked + (caption or ASKED)


def _image_token(processor: Any) -> str:
    for holder in (processor, processor.tokenizer):
        if isinstance(token := getattr(holder, "image_token", None), str):
            return token
    raise ValueError("it has no token that stands for an image")


def _last_place_of(processor: Any, model: "PreTrainedModel", ids: torch.Tensor) -> int:
    """The last place that holds a part of the image or what closes it."""
    config = model.config
    marks = {getattr(config, name, None) for name in ("image_token_id", "image_token_index", "eoi_token_id")}
    marks |= {getattr(config, name, None) for name in ("eoi_token_index", "vision_end_token_id")}
    marks |= {getattr(processor, "image_token_id", None)}
    numbers = torch.tensor([mark for mark in marks if isinstance(mark, int)])
    places = torch.isin(ids, numbers).nonzero().flatten()
    if not len(places):
        raise ValueError("it puts no place for the image into the text")
    return int(places[-1])
