"""Normalisation of paths that users write."""

import os
import re
from pathlib import Path

from msssm.errors import InputError


def local_path(text: str | Path) -> Path:
    """Expands `~` and `$NAME`, and resolves `..` through symbolic links.

    Raises:
        InputError: the path is empty, is an address such as s3://bucket, or has a variable that is not set.
    """
    given = str(text)
    if not given or "://" in given:
        raise InputError(f"expected the path of a file or folder on this machine, got {given!r}")
    expanded = os.path.expanduser(os.path.expandvars(given))
    if unknown := re.search(r"^~\w*|(?<![^/])\$\{?\w+\}?", expanded):
        raise InputError(f"{given}: {unknown[0]} is not known here; write the path out")
    path = Path(expanded)
    return path.resolve() if ".." in path.parts else path
