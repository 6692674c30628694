"""What a model does with tokens, from its config.json: by the name of its class, else as transformers' mappings say."""

import re
from collections.abc import Iterable
from functools import cache, partial
from typing import Any, Literal

Kind = Literal["causal", "encoder", "encoder-decoder"]
PREDICTS = ("causal", "encoder-decoder")  # the next token, so that a loss can be measured
PLAIN = ("CausalLM", "LMHeadModel")  # how the classes of models that predict the next token are named
GENERATION = "ForConditionalGeneration"
POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_decoder_position_embeddings")
# Whose head for the next token sees later ones, unless its config makes a decoder of it. Said here, since asking
# transformers takes seconds; a test holds it to transformers' lists.
LIKE_BERT = {
    "bert",
    "big_bird",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "megatron-bert",
    "reformer",
    "rembert",
}
LIKE_BERT |= {"roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
SEE_AHEAD = {"xlnet"}  # whose head, too, sees later tokens, unless it is told token by token not to


def kind_of(config: dict[str, Any], has_head: bool) -> Kind:
    """The kind of the model that a config.json describes.

    "causal" where a language head predicts the next token (of image-text and audio-text models too), "encoder-decoder"
    where it predicts a second sequence from a first, "encoder" where outputs are all there is. has_head: whether the
    tensors hold a language head, which decides where the config names no class and transformers knows none.
    """
    name, model_type = (config.get("architectures") or [None])[0], str(config.get("model_type"))
    if model_type in SEE_AHEAD:
        return "encoder"
    decoder = config.get("is_decoder") or config.get("causal")
    if name is not None and name.endswith(PLAIN):
        return "encoder" if model_type in LIKE_BERT and not decoder else "causal"
    if name is None and _listed(model_type, None, "masked") and not decoder:
        return "encoder-decoder" if _two_parts(config, model_type) else "encoder"
    generates = _listed(model_type, name, "two parts", "text", "images") or (name or "").endswith(GENERATION)
    if not generates:
        return "causal" if name is None and has_head else "encoder"
    return "encoder-decoder" if _two_parts(config, model_type) else "causal"


def positions_of(config: Any) -> int | None:
    """Tokens that the model of a config (config.json's contents, or transformers' object) has positions for, None where
    nothing limits them."""
    read = config.get if isinstance(config, dict) else partial(getattr, config)
    found = [value for field in POSITIONS if isinstance(value := read(field, None), int) and value > 0]
    return min(found, default=None)


def loader_of(config: dict[str, Any], kind: Kind | None) -> str:
    """The name of the class of transformers that loads a model of that kind and config.json: with its head, where the
    config names a class that transformers has (`AutoModel` leaves heads away, and may begin a pooler at random)."""
    name = (config.get("architectures") or [""])[0]
    if kind == "encoder":
        import transformers

        return name if re.fullmatch(r"[A-Za-z]\w*", name) and hasattr(transformers, name) else "AutoModel"
    if kind == "encoder-decoder":
        return name or "AutoModelForSeq2SeqLM"
    return "AutoModelForCausalLM" if not name or name.endswith(PLAIN) else name


def _two_parts(config: dict[str, Any], model_type: str) -> bool:
    """Whether the model, or its text part, is an encoder and a decoder."""
    for part, kind in ((config, model_type), (config.get("text_config"), None)):
        if isinstance(part, dict) and part.get("is_encoder_decoder", kind and _two_by_default(kind)):
            return True
    return False


@cache
def _two_by_default(model_type: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type].is_encoder_decoder


def _listed(model_type: str, architecture: str | None, *lists: str) -> bool:
    """Whether one of these lists of transformers has the model type, with that class where one is given."""
    for name in lists:
        classes = _classes(name).get(model_type)
        if classes is not None and (architecture is None or architecture in classes):
            return True
    return False


@cache
def _classes(name: str) -> dict[str, tuple[str, ...]]:
    """{model type: names of classes} of transformers' mappings of that sort."""
    from transformers.models.auto import modeling_auto as auto

    mappings: dict[str, Iterable[dict]] = {
        "two parts": (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES),
        "text": (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,),
        "images": (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES),
        "masked": (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,),
    }
    found: dict[str, tuple[str, ...]] = {}
    for mapping in mappings[name]:
        for model_type, classes in mapping.items():
            both = (classes,) if isinstance(classes, str) else tuple(classes)
            found[model_type] = found.get(model_type, ()) + both
    return found
