"""The ways in which a command ends other than well."""

from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong: one sentence that names the file, field or weight and says what to do."""


class StorageError(Exception):
    """The machine cannot keep what is to be written (the disk is full, a limit is met): one sentence that names the
    file. What was finished before is on disk, and the same command goes on from there."""


class NotVerified(Exception):
    """A folder that was written is not the model that its plan describes: one sentence that names it and what is wrong.
    The folder stays for whoever wants to look, and nothing is measured on it."""


class Cancelled(Exception):
    """The user asked to stop; what is finished is on disk, and the same command goes on from there."""


def unknown(what: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is none of those known, with the nearest one where the spelling is close.

    >>> print(unknown("Network", "mpoo", ["lowrank", "mpo"]))
    Network 'mpoo' is not one of lowrank, mpo. Did you mean 'mpo'?
    """
    names = list(known)
    near = nearest(name, names)
    asked = f" Did you mean {near!r}?" if near else ""
    return InputError(f"{what} {name!r} is not one of {', '.join(names)}.{asked}")


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The one of these names that is spelt most like `name`, None where none is close.

    >>> nearest("quantise", ["network", "quantize"])
    'quantize'
    """
    import difflib  # for what went wrong alone

    near = difflib.get_close_matches(str(name)[:200].lower(), list(known), n=1)
    return near[0] if near else None
