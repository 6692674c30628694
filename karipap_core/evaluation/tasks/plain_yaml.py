"""YAML of strangers: plain values alone, and its size, depth and count known before anything is built."""

import math
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from karipap_core.errors import InputError
from karipap_core.reading import decode, read_bytes

MOST_BYTES = 1 << 20
MOST_DEPTH = 32  # mappings and lists within each other
MOST_VALUES = 50_000
MOST_DIGITS = 400  # of one number


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a file holds: strings, finite numbers, true, false, null, lists and mappings of these.

    Raises InputError, naming file and line, for what is no YAML, a tag (`!function` would run Python), an alias (a few
    of them stand for any number of values), a name given twice, a value of another kind such as a date, and what is
    too large, too deep or too many.
    """
    text = decode(read_bytes(path, MOST_BYTES), str(path))
    try:
        _check_events(text, path)
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except InputError:
        raise
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f"{path}, line {line + 1}" if line is not None else str(path)
        why = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{where}: not plain YAML ({why}).") from None
    except (ValueError, OverflowError) as error:  # a number or a date that is none
        raise InputError(f"{path}: not plain YAML ({error}).") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no YAML mapping: a task is one.")
    _check_values(document, path, "")
    return document


def _check_events(text: str, path: Path) -> None:
    """Raises InputError for what is not built; the parser goes no further than the first of these."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader), 1):
        where = f"{path}, line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"{where}: the alias *{event.anchor} stands for values elsewhere. Write them out.")
        if isinstance(event, yaml.DocumentStartEvent) and event.explicit and count > 2:
            raise InputError(f"{where}: a second document begins (---). Give each task a file of its own.")
        if (tag := getattr(event, "tag", None)) == "!function":
            raise InputError(f"{where}: !function would run Python from that folder. Write it as a template.")
        if tag is not None:
            raise InputError(f"{where}: the tag {tag} is not plain YAML. Take it out.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise InputError(f"{where}: values nest more than {MOST_DEPTH} deep: that is no task.")
        if count > MOST_VALUES:
            raise InputError(f"{where}: more than {MOST_VALUES:,} values: that is no task.")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and len(event.value) > MOST_DIGITS:
            digits = event.value.lstrip("+-")
            if digits[:1].isdigit() and not any(sign.isspace() for sign in digits):
                raise InputError(f"{where}: a number of {len(digits):,} digits: at most {MOST_DIGITS}.")


class _Loader(yaml.SafeLoader):
    """Plain YAML in which a name within a mapping is unique."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the field {key!r} twice: keep one of them", key_node.start_mark
                )
            seen.add(key) if isinstance(key, Hashable) else None
        return super().construct_mapping(node, deep=deep)


def _check_values(value: Any, path: Path, field: str) -> None:
    """Raises InputError for what JSON would not hold."""
    if isinstance(value, dict):
        for key, one in value.items():
            if not isinstance(key, str):
                raise InputError(f"{path}: the name {key!r} in {field or 'the task'} is no string. Put it in quotes.")
            _check_values(one, path, f"field {key}")
    elif isinstance(value, list):
        for one in value:
            _check_values(one, path, field)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{path}: {field} holds {value}, which is no finite number.")
    elif value is not None and not isinstance(value, str | int | float | bool):
        kind = type(value).__name__
        raise InputError(f"{path}: {field} holds a {kind}, not a string or number. Put it in quotes.")
