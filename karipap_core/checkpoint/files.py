"""Which files of a folder make up its model: by an index, by their numbers, or all the .safetensors that there are."""

import json
import os
import re
from pathlib import Path

from karipap_core.errors import InputError
from karipap_core.reading import open_file, read_json

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
GGUF, MAGIC = ".gguf", b"GGUF"
OTHERS = (".safetensors", ".json", *PICKLES)  # files that are never looked into for it
MOST_NAMED = 4  # files that a sentence names
ADAPTER = "adapter_config.json"
# Settings, templates and the files of tokenizers: .spm are Marian's, .codes BERTweet's, .tokenizer ProphetNet's.
READ_BY_LIBRARIES = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".spm", ".codes", ".tokenizer")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
# What decides about a model's outputs besides its tensors.
SETTINGS = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "merges.txt", *TOKENIZERS),
)
OF_BYTES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")  # which need no vocabulary
SHARD = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.safetensors")
GGUF_PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.IGNORECASE)
BESIDE_GGUF = ("mmproj", "imatrix")  # how files of llama.cpp begin that lie beside a model and are none


def files_of(folder: Path) -> dict[Path, list[str] | None]:
    """The safetensors files that make up a folder's model, each with the tensors that an index says it holds."""
    index, names = folder / "model.safetensors.index.json", names_in(folder)
    if os.path.lexists(folder / "model.safetensors"):  # also a link that leads nowhere: it says so when it is opened
        return {folder / "model.safetensors": None}
    if os.path.lexists(index):
        return _shards(folder, index)
    found = [name for name in names if name.endswith(".safetensors") and not name.startswith("adapter_")]
    found = [name for name in found if not name.startswith("consolidated")] or found
    if found:
        _complete(folder, found)
        return dict.fromkeys(folder / name for name in found)
    if other := unread(names):
        raise InputError(f"{folder} {other}")
    if any(name.startswith("adapter_") for name in names):
        raise InputError(f"{folder} holds an adapter without the model it belongs to: save the two merged.")
    raise InputError(f"{folder} holds no .safetensors file: {_instead(folder, names)}.")


def _instead(folder: Path, names: list[str]) -> str:
    """What to name in the place of a folder without a model: one of its sub-folders that has one, as trainers and
    sentence-transformers leave them."""
    within = [name for name in names if (folder / name / "config.json").is_file() and not name.startswith(".")]
    within = [name for name in within if any(file.endswith(".safetensors") for file in os.listdir(folder / name))]
    shown = ", ".join(within[:MOST_NAMED]) + (", …" if len(within) > MOST_NAMED else "")
    return f"name the folder in it that has a model ({shown})" if within else "name a folder or file with a model in it"


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer: a vocabulary, or settings that name a class which needs none."""
    if any((folder / name).is_file() for name in TOKENIZERS):
        return True
    try:
        settings = read_json(folder / "tokenizer_config.json", lenient=True)
    except InputError:
        return False
    return settings.get("tokenizer_class") in OF_BYTES


def refuse_adapter(folder: Path) -> None:
    """Raises InputError where an adapter lies beside a model's full weights: transformers puts it on the model where
    peft is installed and leaves it away where it is not, so nobody can say which of the two is meant."""
    if os.path.lexists(folder / ADAPTER):
        raise InputError(
            f"{folder} holds a model and, beside it, an adapter ({ADAPTER}), which is or is not put on the model "
            "depending on what is installed: take the adapter's files (adapter_*) away to have the model alone, or "
            "move them into a folder of their own and open that, with this model as their base."
        )


def unread(names: list[str]) -> str:
    """What is said of weights among these names that are in a form that is never read, and what to do; "" for none."""
    if pickled := next((name for name in names if name.endswith(PICKLES)), None):
        return (
            f"holds only pickled weights ({pickled}), which can execute code and are never read: save the model with "
            "safetensors first (save_pretrained of transformers does)."
        )
    return ""


def gguf_files(path: Path) -> list[Path]:
    """The GGUF files that make up the model at `path`: a file of it, or a folder that holds none in safetensors. None
    where it is no such model. Raises InputError for a folder with several, and where a part is missing."""
    if not path.is_dir():
        if path.suffix.lower() != GGUF:
            return [path] if path.suffix not in OTHERS and _is_gguf(path) else []
        if GGUF_PART.fullmatch(path.name) is None:
            return [path]
        return _there(path.parent, parts_of(path.name, names_in(path.parent)))
    names = names_in(path)
    models = [] if any(name.endswith(".safetensors") for name in names) else gguf_models(names)
    if len(models) > 1:
        raise InputError(f"{path} holds {several(models)}: name one of them.")
    return _there(path, parts_of(models[0], names)) if models else []


def _is_gguf(path: Path) -> bool:
    """Whether a file is GGUF by its first bytes: Ollama's have no name that says so."""
    if not path.is_file():
        return False
    with open_file(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def gguf_models(names: list[str]) -> list[str]:
    """The GGUF models among these names of files: of one in parts the first of them that is there."""
    found = [name for name in sorted(names) if name.lower().endswith(GGUF) and not name.startswith(BESIDE_GGUF)]
    models: dict[tuple, str] = {}
    for name in found:
        part = GGUF_PART.fullmatch(name)
        models.setdefault((part[1], part[3]) if part else (name,), name)
    return list(models.values())


def parts_of(name: str, names: list[str]) -> list[str]:
    """The names of all files of the GGUF model that `name` is, or is a part of, up to the first that is not there."""
    part = GGUF_PART.fullmatch(name)
    if part is None:
        return [name]
    found = []
    for number in range(1, int(part[3]) + 1):
        found.append(f"{part[1]}-{number:05d}-of-{part[3]}{name[-len(GGUF) :]}")
        if found[-1] not in names:
            break
    return found or [name]


def several(names: list[str]) -> str:
    """How many GGUF models there are and what they are called: "3 GGUF models (a.gguf, b.gguf, c.gguf)"."""
    shown = ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")
    return f"{len(names)} GGUF models ({shown})"


def _there(folder: Path, names: list[str]) -> list[Path]:
    if not os.path.lexists(folder / names[-1]):
        raise InputError(f"{folder} lacks {names[-1]}: fetch it again.")
    return [folder / name for name in names]


def names_in(folder: Path) -> list[str]:
    """The names in a folder. Raises InputError for what is no file where a library would take it for one, and wait."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"Folder {folder} cannot be read: {error.strerror}.") from None
    for name in names:
        if name.endswith(READ_BY_LIBRARIES) and not os.path.isfile(folder / name):
            open_file(folder / name).close()
    return names


def _shards(folder: Path, index: Path) -> dict[Path, list[str] | None]:
    """The files that an index names, each with the tensors that it says are there."""
    weight_map = read_json(index, lenient=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map: fetch it again.")
    named: dict[Path, list[str] | None] = {}
    for tensor, file in sorted(weight_map.items()):
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise InputError(
                f"{index} names {json.dumps(file)[:80]} for tensor {tensor}, which is no .safetensors file beside it."
            )
        if not os.path.lexists(folder / file):
            raise InputError(f"{folder} lacks {file}, which its index names: fetch the model again.")
        tensors = named.setdefault(folder / file, [])
        if tensors is not None:
            tensors.append(tensor)
    return named


def _complete(folder: Path, names: list[str]) -> None:
    """Refuses shards without an index of which some are missing."""
    for name in names:
        if numbered := SHARD.fullmatch(name):
            stem, _, count = numbered.groups()
            for number in range(1, min(int(count), len(names) + 1) + 1):
                if f"{stem}-{number:05d}-of-{count}.safetensors" not in names:
                    raise InputError(f"{folder} lacks {stem}-{number:05d}-of-{count}.safetensors: fetch it again.")
