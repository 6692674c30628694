"""A short fine-tune of the cores of a compressed model."""
