"""Data sets on disk: names that stay inside, one writer at a time, and errors that say what to do."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from datamodules.errors import StorageError


def leaves_its_folder(name: str) -> bool:
    """Whether a path that a table, a list or an archive names lies outside the folder that it is taken from.

    The name is judged alone, not what the disk has there: a symbolic link is made by who owns the folder, and followed.
    """
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


@contextmanager
def locked(parent: Path) -> Iterator[None]:
    """One process at a time makes something in `parent`; the others wait and take what it made."""
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def remedies(name: str, parent: Path, mebibytes: int | None = None) -> Iterator[None]:
    """Turns the errors of a full disk and of a forbidden one into what to do about them.

    Args:
        name: of the data set whose conversion is written.
        parent: where.
        mebibytes: that it needs, where that is known.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            need = "" if mebibytes is None else f"it needs {mebibytes} MiB; "
            remedy = f"{need}free some, or choose another root, and run it again"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "choose a root that can be written, and name what is here as the source"
        else:
            raise
        reason = f"cannot write the conversion of {name} in {parent}: {error.strerror}; {remedy}"
        raise StorageError(error.errno, reason) from error
