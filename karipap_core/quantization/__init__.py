"""Numbers in few bits: formats and packing, rounding to nearest, GPTQ."""
