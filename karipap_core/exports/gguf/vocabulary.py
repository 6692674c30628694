"""A tokenizer as the entries of a GGUF file: byte-level BPE ("gpt2" there) and BPE with bytes for characters that it
lacks ("llama").

llama.cpp does not read how a tokenizer cuts text into words; it has a list of rules by name, `tokenizer.ggml.pre`. A
name is chosen by the rule itself, compared as a whole (`RULES`, from llama.cpp's `llm_tokenizer_bpe`), and a tokenizer
with another rule is refused rather than written under a similar one.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karipap_core.checkpoint.files import has_tokenizer
from karipap_core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # gguf.TokenType
NEVER = -1e6  # a score of tokens that no merge makes, below all others
SPACE = "\u2581"  # what SentencePiece has for a space
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
BEGINS, ENDS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BEFORE, PATHS = r"[^\r\n\p{L}\p{N}]?", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
THREES = rf"{SHORT}|{WORD}|\p{{N}}{{1,3}}|{SIGNS}|{REST}"
ONES = rf"{SHORT}|{WORD}|\p{{N}}|{SIGNS}|{REST}"
MARKS = rf"{SHORT}|{BEFORE}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{REST}"
CASES = rf"{BEFORE}{BEGINS}*{ENDS}+|{BEFORE}{BEGINS}+{ENDS}*|\p{{N}}|{PATHS}|{REST}"
CASES_THREES = rf"{BEFORE}{BEGINS}*{ENDS}+{SHORT}?|{BEFORE}{BEGINS}+{ENDS}*{SHORT}?|\p{{N}}{{1,3}}|{PATHS}|{REST}"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
BYTES, WORDS = "bytes", "words"  # ByteLevel without and with its own rule for words
# (steps, whether a word that is a token is taken without merges) → llama.cpp's name
RULES: dict[tuple[tuple[str, ...], bool], str] = {
    ((WORDS,), False): "gpt-2",
    (("digit", WORDS), False): "smollm",
    ((THREES, BYTES), True): "llama-bpe",
    ((THREES, BYTES), False): "smaug-bpe",
    ((ONES, BYTES), False): "qwen2",
    ((MARKS, BYTES), False): "qwen35",
    ((CASES, BYTES), True): "tekken",
    ((CASES_THREES, BYTES), False): "gpt-4o",
    ((BLOOM, BYTES), False): "bloom",
    (("punctuation", WORDS, "digits", "[0-9][0-9][0-9]"), False): "falcon",
}
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def vocabulary(folder: Path, rows: int) -> tuple[dict[str, Any], list[str]]:
    """(entries, notes) of the tokenizer in a folder, of as many tokens as the model's table has rows.

    Raises InputError where it is of another kind, or cuts text in a way that llama.cpp has no name for.
    """
    if not has_tokenizer(folder):
        said = "The folder has no tokenizer: llama.cpp runs the file on token ids alone."
        return {"tokenizer.ggml.model": "none"}, [said]
    from karipap_core.models.load import load_tokenizer

    tokenizer = load_tokenizer(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    document = {} if backend is None else json.loads(backend.to_str())
    kind = (document.get("model") or {}).get("type")
    if kind != "BPE":
        raise InputError(
            f"The tokenizer in {folder} is {kind or 'one without tokenizer.json'}; GGUF is written of BPE."
        )
    within(document["model"], rows)
    own = llama if document["model"].get("byte_fallback") else gpt2
    entries, notes = own(document, folder)
    return entries | tokens(document, rows, own is llama) | special(tokenizer, rows), notes


def within(model: dict[str, Any], rows: int) -> None:
    """Takes what the model has no row for out of a tokenizer: tokens, and the merges that make them."""
    model["vocab"] = {text: number for text, number in model["vocab"].items() if number < rows}
    model["merges"] = [pair for pair in pairs(model) if {*pair, "".join(pair)} <= model["vocab"].keys()]


def gpt2(document: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What a byte-level BPE has of its own: its rule of words and its merges."""
    model = document["model"]
    cut, ignore = steps(document.get("pre_tokenizer"), folder), bool(model.get("ignore_merges"))
    name = RULES.get((cut, ignore))
    if name is None:
        shown = " then ".join(cut)[:200] or "nothing"
        raise InputError(f"The tokenizer in {folder} cuts text by a rule that llama.cpp has no name for ({shown}).")
    normal = normalizers(document)
    if any(step["type"] != "NFC" for step in normal):
        raise InputError(f"The tokenizer in {folder} changes text ({normal[0]['type']}), which llama.cpp does not.")
    notes = (
        ["llama.cpp does not compose characters (NFC), as the tokenizer does: give it text in NFC."] if normal else []
    )
    if not model["merges"]:
        raise InputError(f"The tokenizer in {folder} has no merges, and llama.cpp opens none without.")
    merges = [" ".join(pair) for pair in model["merges"]]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.merges": merges}, notes


def steps(pre: dict[str, Any] | None, folder: Path) -> tuple[str, ...]:
    """How text is cut into words, a word or a regular expression for each step."""
    if pre is None:
        return ()
    if pre["type"] == "Sequence":
        return tuple(step for each in pre["pretokenizers"] for step in steps(each, folder))
    if pre["type"] == "ByteLevel" and not pre.get("add_prefix_space"):
        return (WORDS if pre.get("use_regex", True) else BYTES,)
    if pre["type"] == "Digits":
        return ("digit" if pre.get("individual_digits") else "digits",)
    if pre["type"] == "Punctuation" and pre.get("behavior") == "Contiguous":
        return ("punctuation",)
    if pre["type"] == "Split" and "Regex" in pre["pattern"]:
        whole = ("Removed", True), ("Isolated", False)  # either keeps what the expression finds, which is everything
        if (pre["behavior"], bool(pre["invert"])) in whole:
            return (pre["pattern"]["Regex"],)
    raise InputError(
        f"The tokenizer in {folder} cuts text by {json.dumps(pre)[:160]}, which llama.cpp has no name for."
    )


def normalizers(document: dict[str, Any]) -> list[dict[str, Any]]:
    normal = document.get("normalizer") or {"type": "Sequence", "normalizers": []}
    return normal["normalizers"] if normal["type"] == "Sequence" else [normal]


def llama(document: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What a BPE with bytes for unknown characters has of its own: whether a space is put before a text."""
    pre = document.get("pre_tokenizer")
    before = [step for step in normalizers(document) if step["type"] == "Prepend"]
    others = [step for step in normalizers(document) if step["type"] not in ("Prepend", "Replace")]
    prefix = bool(before)
    if pre is not None and pre["type"] == "Metaspace" and not pre.get("split", True):
        prefix = pre.get("prepend_scheme", "always") != "never"
    elif pre is not None and not (pre["type"] == "Split" and pre["pattern"] == {"String": " "}):
        others.append(pre)
    if others:
        raise InputError(f"The tokenizer in {folder} has {others[0]['type']}, which llama.cpp's SentencePiece has not.")
    entries = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
    made, vocabulary = ranks(document["model"]), document["model"]["vocab"]
    known = {tuple(pair) for pair in document["model"]["merges"]}
    ways = sum(
        (token[:cut], token[cut:]) not in known
        for token in made
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    )
    said = f"llama.cpp makes tokens in {ways:,} ways that the tokenizer has no merge for: it may cut a text otherwise."
    return entries | {"tokenizer.ggml.add_space_prefix": prefix}, [said] if ways else []


def pairs(model: dict[str, Any]) -> list[list[str]]:
    return [each.split(" ") if isinstance(each, str) else each for each in model["merges"]]


def ranks(model: dict[str, Any]) -> dict[str, int]:
    """Token → the first of the merges that make it."""
    found: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        found.setdefault("".join(pair), rank)
    return found


def tokens(document: dict[str, Any], rows: int, scored: bool) -> dict[str, Any]:
    """Every token by its number, what kind it is, and where `scored` its score: minus the rank of its merge."""
    model = document["model"]
    texts, kinds = [f"[PAD{number}]" for number in range(rows)], [UNUSED] * rows
    scores, made = [NEVER] * rows, ranks(model) if scored else {}
    for text, number in model["vocab"].items():
        single = len(text) == 1 or is_byte(text)
        texts[number], kinds[number] = text, BYTE if scored and is_byte(text) else NORMAL
        scores[number] = -float(made[text]) if text in made else 0.0 if single else NEVER
    for added in document["added_tokens"]:
        if (number := added["id"]) < rows:
            kinds[number] = CONTROL if added["special"] else USER_DEFINED
            plain = scored and not added["special"]  # as a text has it, before spaces become signs
            texts[number] = added["content"].replace(SPACE, " ") if plain else added["content"]
            scores[number] = 0.0
            if added["content"] == model.get("unk_token"):
                kinds[number] = UNKNOWN
    found = {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": kinds}
    return found | ({"tokenizer.ggml.scores": scores} if scored else {})


def is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def special(tokenizer: "PreTrainedTokenizerBase", rows: int) -> dict[str, Any]:
    """Ids of special tokens, whether one begins or ends every text, and the chat template."""
    found: dict[str, Any] = {}
    for name, word in SPECIAL.items():
        number = getattr(tokenizer, f"{name}_token_id")
        if isinstance(number, int) and number < rows:
            found[f"tokenizer.ggml.{word}_token_id"] = number
    plain, ids = (tokenizer("a", add_special_tokens=special).input_ids for special in (False, True))
    begins, ends = ids[:1] != plain[:1], ids[-1:] != plain[-1:]
    found["tokenizer.ggml.add_bos_token"] = begins and ids[0] == tokenizer.bos_token_id
    found["tokenizer.ggml.add_eos_token"] = ends and ids[-1] == tokenizer.eos_token_id
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    return found | ({"tokenizer.chat_template": template} if template else {})
