"""Singular spectra, what a random matrix of the same shape would show, and the metric that errors are measured in."""
