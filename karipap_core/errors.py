"""The ways in which a command ends other than well."""

from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong: one sentence that names the file, field or weight and says what to do."""


class StorageError(Exception):
    """The machine cannot keep what is to be written (the disk is full, a limit is met): one sentence that names the
    file. What was finished before is on disk, and the same command goes on from there."""


class Cancelled(Exception):
    """The user asked to stop; what is finished is on disk, and the same command goes on from there."""


def unknown(what: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is none of those known, with the nearest one where the spelling is close.

    >>> print(unknown("Network", "mpoo", ["lowrank", "mpo"]))
    Network 'mpoo' is not one of lowrank, mpo. Did you mean 'mpo'?
    """
    import difflib  # for this sentence alone

    names = list(known)
    near = difflib.get_close_matches(str(name).lower(), names, n=1)
    asked = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"{what} {name!r} is not one of {', '.join(names)}.{asked}")
