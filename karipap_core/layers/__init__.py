"""Networks as torch modules: stored cores, a linear layer, an embedding."""
