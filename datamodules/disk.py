"""Writing data sets: one process at a time, and errors that say what to do."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datamodules.errors import StorageError


@contextmanager
def locked(parent: Path) -> Iterator[None]:
    """One process at a time makes something in `parent`; the others wait and take what it made."""
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def remedies(name: str, parent: Path, mebibytes: int) -> Iterator[None]:
    """Turns the errors of a full disk and of a forbidden one into what to do about them.

    Args:
        name: of the data set whose conversion is written.
        parent: where.
        mebibytes: that it needs.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            remedy = f"it needs {mebibytes} MiB; free some, or choose another root, and run it again"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "choose a root that can be written, and name this data set as source"
        else:
            raise
        reason = f"cannot write the conversion of {name} in {parent}: {error.strerror}; {remedy}"
        raise StorageError(error.errno, reason) from error
