"""Small live models, and one a little off."""

import copy

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
    ).eval()


def perturbed(model, size=0.03):
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    for parameter in other.model.layers.parameters():
        parameter.data += size * torch.randn_like(parameter)
    return other
