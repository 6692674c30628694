"""Live transformers models: loading one, the places of its weights, experts, the quantizer that reads our folders."""
