"""Compressed folders as what other engines load without Karipap: one exporter a file, under one registry."""

# What `--to` takes → the module of this package that writes it. Each is imported when it is asked for.
TARGETS = {
    "transformers": "transformers_folder",
    "vllm": "vllm_folder",
    "gguf": "gguf.exporter",
    "onnx": "onnx_folder",
}
TOKENS = 8192  # of a text that an export is measured on, where nobody says how many
