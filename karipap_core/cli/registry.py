"""The verbs by name: how one is registered, and the command line that stands for given options."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from karipap_core.progress import Progress


def typed(verb: str, args: argparse.Namespace, without: tuple[str, ...] = ()) -> list[str]:
    """The command line of parsed arguments: the verb and every option of its own that is not at its default."""
    words = [verb]
    for option in VERBS[verb].options:
        name = option.settings.get("dest") or option.flags[0].lstrip("-").replace("-", "_")
        value = getattr(args, name)
        if name in without or value is None or value == option.settings.get("default", False):
            continue
        words += [] if option.flags[0][0] != "-" else [option.flags[0]]
        words += [] if value is True else [str(value)]
    return words


@dataclass(frozen=True)
class Option:
    """One command-line option, as argparse's `add_argument` takes it."""

    flags: tuple[str, ...]
    settings: dict


def option(*flags: str, **settings) -> Option:
    return Option(flags, settings)


@dataclass(frozen=True)
class Verb:
    name: str
    help: str
    example: str
    render: Callable[[dict], str]
    options: tuple[Option, ...]
    run: Callable[[argparse.Namespace, Progress], dict]


VERBS: dict[str, Verb] = {}


def verb(help: str, example: str, render: Callable[[dict], str], *options: Option):
    """Makes a function `(args, progress) -> JSON document` a verb of its name; `render` is the document for people."""

    def register(function: Callable[[argparse.Namespace, Progress], dict]):
        VERBS[function.__name__] = Verb(function.__name__, help, example, render, options, function)
        return function

    return register
