"""Errors in what a user gave: the message alone says what is wrong and how to mend it."""


class InputError(ValueError):
    """Unusable argument, option or file; the message says what was expected, what was given, and what to do.

    Raised only where input is checked. The `msssm` command prints the message alone; any other error, Python's own
    `ValueError` included, is a bug and keeps its traceback.
    """


class MissingFileError(FileNotFoundError, InputError):
    """File or folder that does not exist."""


class StorageError(OSError, InputError):
    """Failed read or write of a disk or a server; the message says what to do."""


class NonFiniteError(FloatingPointError, InputError):
    """Inputs, weights or states that are not finite; the message names where this first happened."""
