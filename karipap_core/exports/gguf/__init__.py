"""Compressed folders as GGUF files, the format of llama.cpp. Names, layouts and fields are those by which such files
are read (`checkpoint/gguf/`), taken the other way."""
