"""What a model is worth: perplexity, fidelity to the dense one, speed and memory, benchmark tasks."""
