"""Data sets on disk: names in them, one writer at a time, folders whole or absent, errors that say what to do."""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from msssm.errors import StorageError

# Hidden ones (.ipynb_checkpoints, .DS_Store, ._x.jpg), and those of archivers, servers and recycle bins.
_LEFT = re.compile(
    r"(?:^|/)(?:\.[^/]*|(?:__MACOSX|@eaDir|#recycle|\$RECYCLE\.BIN|System Volume Information|lost\+found|"
    r"Thumbs\.db|desktop\.ini)(?=/|$))",
    re.IGNORECASE,
)


def leaves_its_folder(name: str) -> bool:
    """Whether a path in a table, a list or an archive lies outside the folder that it is relative to.

    Only the name counts: a symbolic link on disk was made by the folder's owner, and is followed.
    """
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def left_by_a_system(path: str) -> str | None:
    """First part of a relative path that is hidden or that a system left, or None.

    For example, `.ipynb_checkpoints` in `cat/.ipynb_checkpoints/x.jpg`.
    """
    found = _LEFT.search(path)
    return None if found is None else found[0].lstrip("/")


def few(names: Iterable[str]) -> str:
    """Lists names in a sentence, at most five of them."""
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5:,} more" if len(listed) > 5 else "")


@contextmanager
def locked(parent: Path) -> Iterator[None]:
    """Lets one process at a time write in `parent`; the others wait."""
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yields a hidden folder to fill, then renames it to `folder`: readers see all of it or none.

    An existing `folder` is replaced. After an error nothing is left; leftovers of a killed process are removed first.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for path in unfinished.iterdir():  # a rename may reach the disk before the contents do
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def remedies(name: str, parent: Path, mebibytes: int | None = None) -> Iterator[None]:
    """Turns the errors of a full or read-only disk into advice.

    Args:
        name: Name of the data set whose conversion is written.
        parent: folder of the conversion.
        mebibytes: that it needs, if known.
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
