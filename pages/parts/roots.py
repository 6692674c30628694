"""The folders that the dashboard may open: those under KARIPAP_MODEL_ROOTS, those that its owner permitted on
the screen since (see `opening_memory`), and no link that leads out of them.

Every box and every address that takes a path goes through `confine`, and every folder that is offered through `scan`.
What lies under the roots was put there by others: nothing in it may break a page, or keep one waiting.
"""

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from karipap_core.checkpoint.files import GGUF, MAGIC, gguf_models
from karipap_core.errors import InputError
from karipap_core.reading import open_file, read_json
from pages.parts import opening_memory, server

DEPTH = 2  # levels below a root that are looked at
MOST_FOLDERS, MOST_ENTRIES = 2_000, 50_000  # looked at in all
MOST_IN_ONE = 20_000  # entries of one folder
MOST_CONFIG = 4 << 20  # bytes of a config.json; large ones have some ten thousand
LONGEST_NAME = 128
WEIGHTS = ".safetensors"
DEMO = "demo"  # the alias of the model that ships with the project
OUTSIDE = "it is a link that leads out of the folders of KARIPAP_MODEL_ROOTS."


@dataclass
class Listing:
    """What a scan found. models: alias → folder or GGUF file, in order. left_out: name → why. long: an alias that a
    folder keeps whatever others are called → its present alias. twins: a name of several folders → their aliases. cut:
    whether the scan ended at its limits."""

    models: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    long: dict[str, str] = field(default_factory=dict)
    twins: dict[str, list[str]] = field(default_factory=dict)
    cut: bool = False


def roots() -> list[Path]:
    """The folders whose models may be opened: those of KARIPAP_MODEL_ROOTS, separated as PATH is, and those permitted
    on the screen. What somebody at this machine permitted does not count for those who come from elsewhere."""
    named = os.environ.get("KARIPAP_MODEL_ROOTS", "").split(os.pathsep)
    permitted = [] if server.remote_allowed() else opening_memory.permitted()
    permitted = [
        folder for folder in permitted if os.path.realpath(folder) == str(folder)
    ]  # no link in its place since
    return [*(Path(part).expanduser() for part in named if part), *permitted]


def confine(path: str, allowed: list[Path]) -> Path:
    """`path` as a real path inside one of `allowed`; InputError otherwise, the same whether it exists or not.

    Checked as text before the disk is touched (a UNC path would make Windows call a server), then once more with
    every link followed.
    """
    refusal = InputError("This path is not inside the folders of KARIPAP_MODEL_ROOTS.")
    if "\0" in path or path.startswith(("\\\\", "//")):
        raise refusal
    lexical = Path(os.path.abspath(os.path.expanduser(path)))
    if not any(lexical.is_relative_to(os.path.abspath(root)) for root in allowed):
        raise refusal
    try:
        real = Path(os.path.realpath(lexical))
        there = inside(real, allowed) and real.exists()
    except OSError:  # a folder on the way that may not be entered
        there = False
    if not there:
        raise refusal
    return real


def inside(path: str | Path, allowed: Iterable[Path | str]) -> bool:
    """Whether a path, every link followed, lies in one of these folders."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(root)) for root in allowed)


def printable(text: str) -> str:
    """Text that any page can show: file systems allow names with bytes that are no text."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


def showable(name: str) -> str:
    """A file's name to be shown, of bounded length."""
    shown = printable(name)
    return shown if len(shown) <= LONGEST_NAME else f"{shown[:LONGEST_NAME]}…"


def scan(where: Iterable[str], also: Iterable[str] = (), allowed: Iterable[Path] = ()) -> Listing:
    """The models under these folders, two levels deep, each opened no further than its config.json and the first bytes
    of its weights. What is broken or leads out of them is left out, with the reason. also : folders of models that may
    lie deeper. allowed : where links may lead (by default no further than `where`)."""
    where = [Path(root) for root in where]
    allowed = [*allowed] or where
    listing, found, seen = Listing(), [], set()
    left = MOST_ENTRIES
    deeper = [Path(f).parent if f.lower().endswith(GGUF) else Path(f) for f in also if inside(f, allowed)]
    starts = [(root, DEPTH) for root in where] + [(folder, 0) for folder in deeper if folder.is_dir()]
    for start, depth in starts:
        level = [start]
        for _ in range(depth + 1):
            below: list[Path] = []
            for folder in level:
                real = os.path.realpath(folder)
                if real in seen:
                    continue
                if len(seen) >= MOST_FOLDERS or left <= 0:
                    listing.cut = True
                    break
                seen.add(real)
                try:
                    entries, more = _entries(folder, min(left, MOST_IN_ONE))
                except OSError as error:
                    listing.left_out[showable(folder.name or str(folder))] = _why(error)
                    continue
                left -= len(entries)
                listing.cut |= more
                if any(entry.name.endswith(WEIGHTS) for entry in entries):
                    problem = _problem(folder, entries, allowed)
                    if problem is None:
                        found.append(folder)
                    elif problem:
                        listing.left_out[showable(folder.name)] = problem
                else:
                    found += _packed(folder, entries, allowed, listing)
                    below += _folders(entries, allowed, listing)
            level = below
    _name(found, listing)
    return listing


def folders_in(folder: Path, allowed: list[Path]) -> list[Path]:
    """The folders within one, by name, without links that lead out. Raises OSError where it cannot be read."""
    return list(_folders(_entries(folder, MOST_IN_ONE)[0], allowed, Listing()))


def _entries(folder: Path, most: int) -> tuple[list[os.DirEntry], bool]:
    """What lies in a folder, by name, at most so many; and whether there is more."""
    with os.scandir(folder) as entries:
        found = sorted(islice(entries, most), key=lambda entry: entry.name)
        return found, next(entries, None) is not None


def _folders(entries: list[os.DirEntry], allowed: list[Path], listing: Listing) -> Iterator[Path]:
    """The folders among these entries; links that lead nowhere or out are put down as left out."""
    for entry in entries:
        if entry.name.startswith("."):
            continue
        shown = showable(entry.name)
        try:
            if entry.is_symlink():
                os.stat(entry.path)  # tells links that lead nowhere, or back to themselves
                if not inside(entry.path, allowed):
                    listing.left_out[shown] = OUTSIDE
                    continue
            if not entry.is_dir():
                continue
        except OSError as error:
            listing.left_out[shown] = _why(error)
            continue
        if shown != entry.name:
            listing.left_out[shown] = "its name is too long, or has signs that cannot be shown."
            continue
        yield Path(entry.path)


def _packed(folder: Path, entries: list[os.DirEntry], allowed: list[Path], listing: Listing) -> Iterator[Path]:
    """The models in GGUF among these entries, each a file of its own (of one in parts the first)."""
    for name in gguf_models([entry.name for entry in entries]):
        shown = showable(name)
        try:
            if not inside(folder / name, allowed):
                listing.left_out[shown] = OUTSIDE
                continue
            with open_file(folder / name) as file:
                if file.read(len(MAGIC)) != MAGIC:
                    listing.left_out[shown] = "it is no GGUF file, whatever its name."
                    continue
        except InputError as error:
            listing.left_out[shown] = printable(str(error))
            continue
        yield folder / name


def _problem(folder: Path, entries: list[os.DirEntry], allowed: list[Path]) -> str | None:
    """Why a folder with weights is left out; "" where that need not be said (a compressed model), None for a model."""
    for entry in entries:
        if entry.is_symlink() and not inside(entry.path, allowed):
            return f"its {showable(entry.name)} is a link that leads out of the folders of KARIPAP_MODEL_ROOTS."
    names = [entry.name for entry in entries]
    try:
        config = read_json(folder / "config.json", most=MOST_CONFIG, lenient=True) if "config.json" in names else {}
        quantized = config.get("quantization_config")
        if isinstance(quantized, dict) and quantized.get("quant_method") == "karipap":
            return ""
        kind = config.get("model_type", "")
        if not isinstance(kind, str):
            return f"its config.json gives {kind!r:.40} as model_type, which is no text."
        weights = ["model.safetensors"] if "model.safetensors" in names else [n for n in names if n.endswith(WEIGHTS)]
        for name in weights:
            with open_file(folder / name) as file:
                head, size = file.read(8), os.fstat(file.fileno()).st_size
            if len(head) < 8 or int.from_bytes(head, "little") > size - 8:
                return f"its {showable(name)} is cut short or is no safetensors file."
    except InputError as error:
        return printable(str(error))
    return None


def _why(error: OSError) -> str:
    words = {
        errno.ENOENT: "it does not exist, or is a link that leads nowhere.",
        errno.ELOOP: "it is a link that leads back to itself.",
        errno.EACCES: "it may not be read by this user.",
        errno.ENOTDIR: "it is a file, not a folder.",
    }
    return words.get(error.errno or 0, f"it cannot be read ({error.strerror}).")


def _name(found: list[Path], listing: Listing) -> None:
    """Gives each folder its alias: its name, with a number made of its path where several have that name. So an alias
    that somebody keeps never comes to mean another folder because one vanished."""
    named = Counter(folder.name for folder in found)
    for folder in found:
        name = showable(folder.name)
        long = f"{name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:6]}"
        alias = name if named[folder.name] == 1 and name != DEMO else long
        listing.models[alias] = str(folder)
        listing.long[long] = alias
        if named[folder.name] > 1:
            listing.twins.setdefault(name, []).append(alias)
