"""Karipap's own documents, held against their JSON Schemas: the files beside this one, a format each.

A document from disk, or from anybody, comes in through `read` or `check`: what they let through has the fields that
the program takes from it, of the types and within the bounds that it takes them for, and no others.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karipap_core.errors import InputError, nearest
from karipap_core.reading import MOST_BYTES, named, parse_json, read_bytes

if TYPE_CHECKING:  # a tenth of a second
    from fastjsonschema import JsonSchemaValueException

FOLDER = Path(__file__).parent
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
A_NAME = "letters, digits, '.', '_', '+' and '-', at most 128"
SEAL = "seal"  # the field of a kept document that holds the sum of all others
MOST_SHOWN = 60  # letters of a value, or of a name, that a sentence repeats
MOST_FIELD = 200  # of the way to a field
MOST_PASSED = 10_000
WORDS = {
    "object": "an object",
    "array": "a list",
    "string": "a string",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "null": "null",
}
_passed: set[tuple[str | None, bytes]] = (
    set()
)  # (schema, SHA-256) of texts that were let through: pages read them again


def checked_name(name: object, where: str = "") -> str:
    """The name itself, which is one that stays in its folder as a file, and is no option on a command line.

    Names and ids reach here from files and web pages; `where` they are from begins the sentence ("run.json, field id").
    Raises InputError for anything else.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        said = f"{where}: " if where else ""
        raise InputError(f"{said}{_cut(str(name))!r} is not a name: {A_NAME}.")
    return name


def sum_of(document: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a JSON object without its seal, whatever the order of its names."""
    rest = {name: value for name, value in document.items() if name != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def read(path: str | Path, schema: str | None, most: int = MOST_BYTES) -> dict[str, Any]:
    """The document in a file, checked, without its seal. schema: "plan", "run" … as the files here are named; None: any
    object.

    Raises InputError, one sentence that names the file and the field, as `reading.read_json` and `check` do, and where
    the document is not the one that its seal was put on.
    """
    data = read_bytes(path, most)
    source = f"File {path}"
    document = parse_json(data, source)
    if not isinstance(document, dict):
        raise InputError(f"{source} holds {named(document)}, not an object.")
    seal = document.pop(SEAL, None)
    key = schema, hashlib.sha256(data).digest()
    if key in _passed:
        return document
    if schema is not None:
        check(document, schema, source)
    if seal is not None and seal != sum_of(document):
        raise InputError(f"{source} is damaged (its SHA-256 differs): make it again.")
    if len(_passed) >= MOST_PASSED:
        _passed.clear()
    _passed.add(key)
    return document


def check(document: Any, schema: str, source: str) -> None:
    """Raises InputError where a document is not what its schema says; `source` begins the sentence."""
    if not isinstance(document, dict):
        raise InputError(f"{source} holds {named(document)}, not an object.")
    wanted = load(schema)["properties"]
    if (form := wanted.get("format")) and document.get("format") != form["const"]:
        raise InputError(f"{source} is no {form['const']} (field 'format').")
    newest, version = wanted.get("version", {}).get("maximum"), document.get("version")
    if newest and isinstance(version, int) and version > newest:
        versions = f"version {_shown(version)}, this one reads up to {newest}"
        raise InputError(f"{source} was written by a newer Karipap ({versions}): update Karipap.")
    from fastjsonschema import JsonSchemaValueException

    try:
        _checker(schema)(document)
    except JsonSchemaValueException as error:
        raise InputError(f"{source}: {_sentence(error)}") from None


@lru_cache(maxsize=64)
def load(schema: str) -> dict[str, Any]:
    """A JSON Schema of those beside this file."""
    return json.loads((FOLDER / f"{schema}.schema.json").read_text("utf-8"))


@lru_cache(maxsize=64)
def _checker(schema: str) -> Callable[[Any], Any]:
    import fastjsonschema

    def beside(uri: str) -> dict[str, Any]:
        return load(uri.rpartition("/")[2])

    formats = {"name": rf"^{NAME.pattern}\Z"}
    return fastjsonschema.compile(load(schema), handlers={"https": beside}, formats=formats, use_default=False)


# One sentence.


def _sentence(error: "JsonSchemaValueException") -> str:
    field = _cut((error.name or "").removeprefix("data").removeprefix("."), MOST_FIELD)
    inside = f"{field}." if field else ""
    wanted, value = error.rule_definition, error.value
    at = f"field {field}" if field else "the document"
    match error.rule:
        case "additionalProperties":
            known = error.definition.get("properties", {})
            name = next(name for name in value if name not in known)
            close = nearest(name, known)
            ask = f"; did you mean {close!r}?" if close else ": take it out."
            return f"there is no field {inside}{_cut(name)}{ask}"
        case "required":
            return f"field {inside}{next(name for name in wanted if name not in value)} is missing."
        case "type":
            types = [wanted] if isinstance(wanted, str) else wanted
            return f"{at} is {_shown(value)}: it must be {' or '.join(WORDS[each] for each in types)}."
        case "enum" | "const":
            known = wanted if error.rule == "enum" else [wanted]
            close = nearest(value, [each for each in known if isinstance(each, str)])
            names = ", ".join("null" if each is None else str(each) for each in known)
            return f"{at} is {_shown(value)}, not one of {names}." + (f" Did you mean {close!r}?" if close else "")
        case "minimum" | "exclusiveMinimum" | "maximum":
            bound = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}[error.rule]
            limit = f"{wanted:,}" if isinstance(wanted, int) else f"{wanted:g}"
            what = error.definition.get("description", f"{bound} {limit}")
            return f"{at} is {_shown(value)}: it must be {what}."
        case "format":
            return f"{at} is {_shown(value)}, which is not a name: {A_NAME}."
        case "minItems" | "maxItems" | "minProperties" | "maxProperties" | "maxLength":
            what = "letters" if error.rule == "maxLength" else "entries"
            bound = "at least" if error.rule.startswith("min") else "at most"
            return f"{at} has {len(value):,} {what}: {bound} {wanted:,}."
    return f"{at} is {_shown(value)}: it must be {error.definition.get('description', 'another value')}."


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(_cut(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _cut(str(value))
    return named(value)


def _cut(text: str, most: int = MOST_SHOWN) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
