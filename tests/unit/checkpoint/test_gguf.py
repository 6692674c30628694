"""GGUF files: opened as the checkpoints that they were made from, and as transformers opens them."""

import pytest
import torch

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.models.load import load_model
from tests.helpers import architectures, gguf_files

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
MADE = {
    "llama": {},
    "llama_untied": {},
    "llama_biases": {},
    "mistral": {"sliding_window": None},
    "mixtral": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"mlp_only_layers": [], "tie_word_embeddings": False},
    "gemma": {},
    "gemma2": {"sliding_window": 32},
}


@pytest.mark.parametrize("name", MADE)
def test_a_file_opens_as_the_checkpoint_that_it_was_made_from(tmp_path, name):
    folder = architectures.make(name, tmp_path / "made", **{"hidden_size": 64} | MADE[name])
    dense = open_checkpoint(folder)
    opened = open_checkpoint(gguf_files.write(folder, tmp_path / "made.gguf"))
    assert opened.form.words == "F32 (GGUF)" and opened.parameters == dense.parameters
    assert opened.tensors.keys() == dense.tensors.keys()
    for tensor in dense.tensors:
        assert torch.allclose(opened.read_tensor(tensor), dense.read_tensor(tensor), rtol=0, atol=2e-7), tensor
    ids = torch.arange(40)[None] % 256
    (live, tokenizer), (truth, reference) = load_model(opened), load_model(dense)
    with torch.no_grad():
        assert torch.allclose(live(ids).logits, truth(ids).logits, atol=2e-5)
    assert tokenizer("Héllo 1<s>").input_ids == reference("Héllo 1<s>").input_ids
