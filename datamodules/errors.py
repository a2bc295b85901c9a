"""What a user gave: errors whose message is the whole answer; as `msssm.errors`, which this package does not import."""


class InputError(ValueError):
    """An argument, option or file that cannot be used; says what was asked for, what came, and what to do.

    Raised only where input is judged. The `msssm` command prints the message alone; any other error, a `ValueError`
    of Python's included, is a fault of the program and keeps its traceback.
    """


class MissingFileError(FileNotFoundError, InputError):
    """A file or folder that was named and is not there."""


class StorageError(OSError, InputError):
    """A disk or a server that did not take or give what was asked of it, and what to do."""
