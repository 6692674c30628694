"""The verbs by name: how one is registered, and the command line that stands for given options."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from karipap_core.progress import Progress


@dataclass(frozen=True)
class Option:
    """One command-line option, as argparse's `add_argument` takes it."""

    flags: tuple[str, ...]
    settings: dict

    @property
    def name(self) -> str:
        """The name of its value among parsed arguments."""
        return self.settings.get("dest") or self.flags[0].lstrip("-").replace("-", "_")


def option(*flags: str, **settings) -> Option:
    """An option or, without a dash before its name, an argument; `settings` are those of `add_argument`."""
    return Option(flags, settings)


@dataclass(frozen=True)
class Verb:
    """One verb: `run` makes its JSON document, `render` shows that document to people."""

    name: str
    help: str
    example: str
    render: Callable[[dict], str]
    options: tuple[Option, ...]
    run: Callable[[argparse.Namespace, Progress], dict]


VERBS: dict[str, Verb] = {}


def verb(help: str, example: str, render: Callable[[dict], str], *options: Option):
    """Makes a function `(args, progress) -> JSON document` a verb of its name.

    help : what the verb does, in a line. example : what to type after its name.
    render : the document as text for people. options : its own; those that all verbs share are the frame's.
    """

    def register(function: Callable[[argparse.Namespace, Progress], dict]):
        VERBS[function.__name__] = Verb(function.__name__, help, example, render, options, function)
        return function

    return register


def typed(verb: str, args: argparse.Namespace, without: tuple[str, ...] = ()) -> list[str]:
    """The command line of parsed arguments: the verb and every option of its own that is not at its default."""
    words = [verb]
    for option in VERBS[verb].options:
        value = getattr(args, option.name)
        if option.name in without or value is None or value == option.settings.get("default", False):
            continue
        words += [] if option.flags[0][0] != "-" else [option.flags[0]]
        words += [] if value is True else [str(value)]
    return words
