"""Projected entangled pair operators: their spec, fit, lattice, renormalization, and TRG."""
