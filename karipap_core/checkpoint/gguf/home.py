"""The folder that a GGUF file's config.json and tokenizer are written to: as any other model's, for whatever reads or
copies these."""

import json
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from karipap_core.checkpoint.gguf.header import Header
from karipap_core.errors import InputError
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key, writing

SCHEME = 1  # of what is written; another number makes it anew
NO_TOKENIZER = (None, "none", "no_vocab")
MOST_TOLD = 200  # characters of what a library says


def home_of(header: Header, config: dict[str, Any]) -> Path:
    """The folder in the workspace with config.json and the tokenizer of a file, written when it is first asked for.

    Goes by the header's content, so that the same file is found again wherever it lies. Raises InputError where the
    tokenizer cannot be restored or the workspace cannot be written.
    """
    key = settings_key({"header": header.sum, "config": config, "scheme": SCHEME})
    folder = Workspace().root / "cache" / "gguf" / key
    if (folder / "config.json").is_file():
        return folder
    temporary = folder.with_name(f".{key}.{secrets.token_hex(3)}")
    with writing(temporary):
        temporary.mkdir(parents=True)
        try:
            if header.entries.get("tokenizer.ggml.model") not in NO_TOKENIZER:
                _write_tokenizer(header.file, temporary)
            (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
            with suppress(OSError):  # another process was first, with the same
                temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_tokenizer(file: Path, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            file.absolute().parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # what a vocabulary lacks is told in many ways
        said = (str(error).splitlines() or [""])[0][:MOST_TOLD]
        raise InputError(
            f"The tokenizer in {file} cannot be restored by transformers: {type(error).__name__} {said}".rstrip() + "."
        ) from None
    finally:
        logging.set_verbosity(level)
