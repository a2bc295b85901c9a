"""Errors in what a user gave: the message alone says what is wrong and how to mend it; as in `msssm.errors`."""


class InputError(ValueError):
    """Unusable argument, option or file; the message says what was expected, what was given, and what to do.

    Raised only where input is checked. The `msssm` command prints the message alone; any other error, Python's own
    `ValueError` included, is a bug and keeps its traceback.
    """


class MissingFileError(FileNotFoundError, InputError):
    """File or folder that does not exist."""


class StorageError(OSError, InputError):
    """Failed read or write of a disk or a server; the message says what to do."""


class WorkerError(InputError, RuntimeError):
    """Loader process that died or did not answer in time; the message says what to do."""


def lost_worker(error: BaseException) -> str | None:
    """Message for torch's error about a lost loader process, or None for any other error.

    Torch raises it in the main process at whatever point that has reached, possibly far from the loader.
    """
    text = str(error)
    if not isinstance(error, RuntimeError) or not text.startswith(("DataLoader worker (pid", "DataLoader timed out")):
        return None
    what = text.split(". ")[0].removeprefix("DataLoader ").rstrip(". ")
    return (
        f"a loader process was lost: {what}; one that was killed has usually run out of memory or /dev/shm, a silent "
        "one waits for a disk. Use fewer by --data.num_workers (0 loads in the main process), and run it again"
    )
