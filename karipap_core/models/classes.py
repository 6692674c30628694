"""Which class of transformers a checkpoint is loaded as."""

import re
from typing import TYPE_CHECKING, Any

from karipap_core.checkpoint.kinds import Kind
from karipap_core.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PARTS = ("EncoderModel", "TextModel", "VisionModel", "AudioModel")  # classes of a part of their family's model


def class_of(config: "PretrainedConfig", kind: Kind, name: str) -> "type[PreTrainedModel]":
    """The class that a config names where it is transformers' own and predicts tokens, else the one that transformers'
    mapping for the kind has; models whose outputs are all there is come without a head.

    Raises InputError where transformers has none; `name` is the model's.
    """
    import transformers
    from transformers.models.auto.auto_factory import _get_model_class

    own = _named(config, transformers)
    if own is not None and (kind != "encoder" or own.__name__.endswith(PARTS)):
        return own
    autos: tuple[Any, ...] = {
        "causal": (transformers.AutoModelForCausalLM, transformers.AutoModelForMultimodalLM),
        "encoder-decoder": (transformers.AutoModelForSeq2SeqLM, transformers.AutoModelForSpeechSeq2Seq),
        "encoder": (transformers.AutoModel,),
    }[kind]
    for auto in autos:
        if type(config) in auto._model_mapping:
            return _get_model_class(config, auto._model_mapping)
    if own is not None:
        return own
    raise InputError(f"{name} is a {config.model_type}, which transformers has no {autos[0].__name__} for.")


def _named(config: "PretrainedConfig", transformers) -> "type[PreTrainedModel] | None":
    """The class of transformers that a config names, where it is one of a model and for configs of this sort."""
    name = (config.architectures or [""])[0]
    found = getattr(transformers, name, None) if re.fullmatch(r"[A-Za-z]\w*", name) else None
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        return None
    return found if getattr(found, "config_class", None) is type(config) else None
