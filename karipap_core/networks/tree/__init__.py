"""A tree tensor network over a group of layers: its spec, its fit, the spectra of its edges."""
