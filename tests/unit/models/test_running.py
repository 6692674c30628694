"""Models of every kind run on tokens: what goes in, and what comes out of them."""

import json

import pytest
import torch
import transformers

from karipap_core.checkpoint import kinds
from karipap_core.checkpoint.kinds import kind_of, loader_of, positions_of
from karipap_core.errors import InputError
from karipap_core.models import running

V = 97
TWO = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20}
TWO |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": V, "pad_token_id": 1}
T5 = {"vocab_size": V, "d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2}
BERT = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}


def model_of(name: str, config, **settings):
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()


@pytest.mark.parametrize(
    "model",
    [
        ("T5ForConditionalGeneration", "T5Config", T5 | {"decoder_start_token_id": 0}),
        ("BartForConditionalGeneration", "BartConfig", TWO | {"max_position_embeddings": 64}),
        ("MarianMTModel", "MarianConfig", TWO | {"max_position_embeddings": 64, "decoder_start_token_id": 1}),
    ],
    ids=lambda model: model[0],
)
def test_the_loss_of_a_decoder_is_that_of_transformers_with_the_text_as_both_sides(model):
    live, ids = model_of(model[0], model[1], **model[2]), torch.randint(2, V, (3, 12))
    with torch.no_grad():
        theirs = live(input_ids=ids, labels=ids).logits
        ours = running.logits(live, ids)
    # Place t is scored with the token at t + 1, so transformers' shifted logits stand one place earlier here.
    assert torch.equal(ours[:, :-1], theirs[:, 1:])
    own = torch.nn.functional.cross_entropy(ours[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    reference = torch.nn.functional.cross_entropy(theirs[:, 1:].flatten(0, 1), ids[:, 1:].flatten())
    assert own == reference and "same text" in running.words_of(live)


def test_a_speech_models_decoder_is_scored_on_text_behind_silence():
    whisper = TWO | {"max_source_positions": 8, "max_target_positions": 32, "num_mel_bins": 4, "bos_token_id": 2}
    live = model_of("WhisperForConditionalGeneration", "WhisperConfig", **whisper | {"decoder_start_token_id": 3})
    ids = torch.randint(2, V, (2, 9))
    with torch.no_grad():
        theirs = live(input_features=torch.zeros(2, 4, 16), labels=ids).logits
        assert torch.equal(running.logits(live, ids)[:, :-1], theirs[:, 1:])
    assert "zeros" in running.words_of(live) and positions_of(live.config) == 32


def test_a_model_that_sees_later_tokens_is_told_from_one_that_does_not():
    ids = torch.randint(2, V, (1, 6))
    causal = model_of("BertLMHeadModel", "BertConfig", **BERT | {"is_decoder": True})
    assert not running.sees_ahead(causal, ids)
    assert running.sees_ahead(model_of("BertLMHeadModel", "BertConfig", **BERT), ids)


def test_what_reads_no_text_is_not_run():
    sides = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    vit = model_of("ViTModel", "ViTConfig", **sides, image_size=8, patch_size=4)
    with pytest.raises(InputError, match="reads no text but pixel_values"):
        running.output(vit, torch.zeros(1, 3, dtype=torch.long))
    clip = {"text_config": BERT | {"projection_dim": 16}, "vision_config": sides | {"image_size": 8, "patch_size": 4}}
    with pytest.raises(InputError, match="pixel_values beside text"):
        running.output(model_of("CLIPModel", "CLIPConfig", **clip), torch.zeros(1, 3, dtype=torch.long))


def test_a_cache_is_found_missing():
    mamba = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    assert running.without_cache(model_of("MambaForCausalLM", "MambaConfig", **mamba))
    gpt2 = {"vocab_size": V, "n_embd": 16, "n_layer": 1, "n_head": 2}
    assert running.without_cache(model_of("GPT2LMHeadModel", "GPT2Config", **gpt2)) is None


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "causal"),
        ({"model_type": "llama"}, "causal"),
        ({"model_type": "gpt2", "architectures": None}, "causal"),
        ({"model_type": "gpt2", "architectures": ["GPT2Model"]}, "encoder"),
        ({"model_type": "bert"}, "encoder"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "encoder"),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True}, "causal"),
        ({"model_type": "xlnet", "architectures": ["XLNetLMHeadModel"]}, "encoder"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "bart", "architectures": ["BartForConditionalGeneration"]}, "encoder-decoder"),
        ({"model_type": "bart", "architectures": ["BartForSequenceClassification"]}, "encoder"),
        ({"model_type": "marian", "architectures": ["MarianMTModel"]}, "encoder-decoder"),
        ({"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}, "encoder-decoder"),
        ({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}, "causal"),
        ({"model_type": "qwen2_audio", "architectures": ["Qwen2AudioForConditionalGeneration"]}, "causal"),
        ({"model_type": "detr", "architectures": ["DetrForObjectDetection"]}, "encoder"),
        ({"model_type": "unheard_of", "architectures": ["UnheardForCausalLM"]}, "causal"),
    ],
    ids=json.dumps,
)
def test_the_kind_of_a_config(config, kind):
    assert kind_of(config, False) == kind
    if kind == "encoder":
        assert loader_of(config, kind) == config.get("architectures", ["AutoModel"])[0]
        assert loader_of({"architectures": ["UnheardModel"]}, kind) == "AutoModel"


def test_an_unknown_model_with_a_head_is_taken_for_one_that_writes():
    assert kind_of({"model_type": "unheard_of"}, True) == "causal"
    assert kind_of({"model_type": "unheard_of"}, False) == "encoder"


def test_a_model_that_refuses_text_alone_is_not_run_and_says_what_it_asks_for():
    vision = {"embed_dim": 16, "image_size": 16, "patch_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.device("meta"):
        model = model_of("IdeficsForVisionText2Text", "IdeficsConfig", vocab_size=64, vision_config=vision, **sizes)
    said = running.why_not(model)
    assert said is not None and "pixel_values" in said and said.endswith(": it is not run here.")


def test_the_models_like_bert_are_those_that_transformers_lists_with_both_heads():
    from transformers.models.auto import modeling_auto as auto

    both = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() & auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys()
    assert both - kinds.LIKE_BERT == {"bart", "mbart", "mvp"}, "whose causal class makes itself a decoder"
    assert both >= kinds.LIKE_BERT
