"""Small random checkpoints of models that are more than a language: images, sound, states, shared keys and values."""

import json
from pathlib import Path

from tests.helpers.architectures import BOS, COMMON, EOS, LLAMA, PAD, SETTINGS, make, save

IMAGE_TOKEN, IMAGE_START, IMAGE_END, VIDEO_TOKEN = 262, 260, 261, 259
SIDES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = SIDES | {"image_size": 32, "patch_size": 8}
TEXT = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}


def _llava(T):
    vision = T.CLIPVisionConfig(**VISION, projection_dim=32)
    config = T.LlavaConfig(text_config=T.LlamaConfig(**TEXT), vision_config=vision, image_token_index=IMAGE_TOKEN)
    return T.LlavaForConditionalGeneration(config)


def _gemma3(T):
    tokens = {"image_token_id": IMAGE_TOKEN, "boi_token_id": IMAGE_START, "eoi_token_id": IMAGE_END}
    text = TEXT | {"head_dim": 16, "query_pre_attn_scalar": 16}
    return T.Gemma3ForConditionalGeneration(
        T.Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, **tokens)
    )


def _qwen3_vl(T):
    tokens = {"image_token_id": IMAGE_TOKEN, "vision_start_token_id": IMAGE_START, "vision_end_token_id": IMAGE_END}
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "mrope_interleaved": True}
    vision = {"hidden_size": 32, "intermediate_size": 64, "depth": 3, "num_heads": 4, "patch_size": 8}
    vision |= {"out_hidden_size": 48, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    return T.Qwen3VLForConditionalGeneration(
        T.Qwen3VLConfig(
            text_config=TEXT | {"head_dim": 12, "rope_scaling": rope},
            vision_config=vision,
            video_token_id=VIDEO_TOKEN,
            **tokens,
        )
    )


def _gemma3n(T):
    text = TEXT | {"head_dim": 16, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": None}
    text |= {"vocab_size_per_layer_input": COMMON["vocab_size"], "hidden_size_per_layer_input": 8, "laurel_rank": 4}
    text |= {"activation_sparsity_pattern": None, "sliding_window": 16}
    return T.Gemma3nForCausalLM(T.Gemma3nTextConfig(**text))


def _whisper(T):
    sizes = {"d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 80, "decoder_ffn_dim": 80}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_source_positions": 40}
    sizes |= {"max_target_positions": 256, "num_mel_bins": 16, "decoder_start_token_id": BOS}
    return T.WhisperForConditionalGeneration(
        T.WhisperConfig(**sizes, **COMMON, suppress_tokens=None, begin_suppress_tokens=None)
    )


def _mamba(T):
    sizes = {"vocab_size": COMMON["vocab_size"], "hidden_size": 48, "num_hidden_layers": 2, "state_size": 8}
    return T.MambaForCausalLM(T.MambaConfig(**sizes, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD))


MADE = {
    "llava": _llava,
    "gemma3": _gemma3,
    "qwen3_vl": _qwen3_vl,
    "gemma3n": _gemma3n,
    "whisper": _whisper,
    "mamba": _mamba,
}


def make_kind(name: str, folder: Path) -> Path:
    """Writes a checkpoint of one of `MADE`, or of `architectures.SETTINGS`, and returns its folder."""
    if name in SETTINGS:
        return make(name, folder)
    import transformers

    return save(MADE[name](transformers), folder)


def add_processor(name: str, folder: Path) -> None:
    """Puts a processor of images beside a model of "llava", "gemma3" or "qwen3_vl", as its library saves one."""
    import transformers as T
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<video>", "<img>", "</img>", "<image>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {
        "llava": {"image_token": "<image>"},
        "gemma3": {"image_token": "<image>", "boi_token": "<img>", "eoi_token": "</img>"},
        "qwen3_vl": {
            "image_token": "<image>",
            "video_token": "<video>",
            "vision_start_token": "<img>",
            "vision_end_token": "</img>",
        },
    }[name]
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"extra_special_tokens": named}))
    rest = {"processor_class": {"llava": "Llava", "gemma3": "Gemma3", "qwen3_vl": "Qwen3VL"}[name] + "Processor"}
    if name == "llava":
        size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        image = T.CLIPImageProcessorPil(**size)
        rest |= {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    elif name == "gemma3":
        image = T.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
        rest["image_seq_length"] = 4
    else:
        edges = {"shortest_edge": 32 * 32, "longest_edge": 48 * 48}
        image = T.Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, temporal_patch_size=2, size=edges)
    image.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(rest))


def draw(folder: Path, count: int = 6, captions: bool = True) -> Path:
    """Writes small images of noise and stripes, every one with a caption, and returns the folder."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        pixels[:, :: number + 2] = 255
        Image.fromarray(pixels).save(folder / f"{number}.png")
        if captions:
            (folder / f"{number}.txt").write_text(f"Stripes {number + 2} apart on noise.")
    return folder
