"""GGUF files, the format of llama.cpp: their header, their names and values as transformers has them."""
