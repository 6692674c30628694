"""The two ways a command ends other than well."""


class InputError(ValueError):
    """Something the user gave is wrong: one sentence that names the file, field or weight and says what to do."""


class Cancelled(Exception):
    """The user asked to stop; what is finished is on disk, and the same command goes on from there."""
