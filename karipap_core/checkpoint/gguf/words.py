"""How people call what a GGUF file holds."""

from karipap_core.checkpoint.gguf.header import Header


def words_of(header: Header) -> str:
    """The quantization of a file, such as "Q4_K_M (GGUF)": what it says, else the type of most of its bytes."""
    from gguf.constants import LlamaFileType

    said = header.entries.get("general.file_type")
    if said in list(LlamaFileType) and said != LlamaFileType.GUESSED:
        return f"{LlamaFileType(said).name.removeprefix('MOSTLY_').removeprefix('ALL_')} (GGUF)"
    sizes: dict[str, int] = {}
    for info in header.tensors.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.size
    return f"{max(sizes, key=lambda word: sizes[word])} (GGUF)"
