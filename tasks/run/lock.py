"""One process at a time in a run folder."""

import errno
import fcntl
from pathlib import Path
from typing import IO

from msssm.errors import InputError
from tasks.paths import make_folder


def lock_run(folder: Path) -> IO[str]:
    """Locks a run folder until the returned file is closed or this process ends, in whatever way.

    Raises:
        ValueError: another process trains there.
    """
    make_folder(folder)
    file = (folder / ".lock").open("a")
    try:
        # A lock of the process, not of the open file as flock's: workers that outlive a killed training do not hold it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise InputError(f"another process trains in {folder}; wait for it, or choose another --run_dir") from error
    return file
