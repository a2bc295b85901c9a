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


class WorkerError(InputError, RuntimeError):
    """A process of a loader that died, or did not answer in time, and what to do."""


def lost_worker(error: BaseException) -> str | None:
    """What to say of an error of torch about a process of a loader; None for any other error.

    Where a worker dies, torch raises this in the main process wherever that happens to be, also far from the loader.
    """
    text = str(error)
    if not isinstance(error, RuntimeError) or not text.startswith(("DataLoader worker (pid", "DataLoader timed out")):
        return None
    what = text.split(". ")[0].removeprefix("DataLoader ").rstrip(". ")
    return (
        f"a loader process was lost: {what}; one that was killed has mostly run out of memory or /dev/shm, a silent "
        "one waits for a disk. Take fewer by --data.num_workers (0 loads in the main process), and run it again"
    )
