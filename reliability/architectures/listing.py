"""Which architectures there are: transformers' own mappings from a model_type to its classes."""

from dataclasses import dataclass

import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

# What people's checkpoints of a model_type are saved from: the first mapping that knows it. A BERT is one that fills
# masks, although it can be asked to write; a Bart is an encoder with a decoder, although its decoder can stand alone.
MAPPINGS = (
    ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "encoder-decoder"),
    ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "encoder"),
    ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "causal"),
    ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "image-text"),
    ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES", "speech"),
    ("MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", "image-text"),
    ("MODEL_FOR_CTC_MAPPING_NAMES", "speech"),
    ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", "vision"),
    ("MODEL_MAPPING_NAMES", "base"),
)


@dataclass(frozen=True)
class Architecture:
    """A model_type, the class that its checkpoints name, and the kind of model that its mapping says."""

    name: str
    class_name: str
    kind: str


def architectures() -> list[Architecture]:
    """One for each model_type that has a model class, by name."""
    found = []
    for name in sorted(CONFIG_MAPPING_NAMES):
        for mapping, kind in MAPPINGS:
            known = getattr(modeling_auto, mapping).get(name)
            class_name = known if known is None or isinstance(known, str) else known[0]
            if class_name is not None and (mapping == MAPPINGS[-1][0] or _of_its_config(name, class_name)):
                found.append(Architecture(name, class_name, _kind(name, class_name, kind)))
                break
    return found


def _of_its_config(name: str, class_name: str) -> bool:
    """Whether a class is made of a whole config of the model_type; some mappings name a part of the model."""
    model = getattr(transformers, class_name, None)
    return model is not None and model.config_class.__name__ == CONFIG_MAPPING_NAMES[name]


def _kind(name: str, class_name: str, kind: str) -> str:
    """A model that both writes and fills masks by one class (XLM) is causal; of an only class, the config says more."""
    if kind == "encoder" and modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(name) == class_name:
        return "causal"
    if kind == "causal" and name in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "image-text"
    return kind
