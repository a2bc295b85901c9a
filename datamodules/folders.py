"""Folders that people made: what systems and programs leave in them is no data."""

import re
from collections.abc import Iterable, Sequence

# Hidden folders and files (.ipynb_checkpoints, .DS_Store, ._x.jpg) and what archivers, servers and bins leave.
_LEFT = re.compile(
    r"(?:^|/)(?:\.[^/]*|(?:__MACOSX|@eaDir|#recycle|\$RECYCLE\.BIN|System Volume Information|lost\+found|"
    r"Thumbs\.db|desktop\.ini)(?=/|$))",
    re.IGNORECASE,
)


def left_by_a_system(path: str) -> str | None:
    """The first part of a relative path that is hidden or left by a system: `.ipynb_checkpoints` in
    `cat/.ipynb_checkpoints/x.jpg`; None where there is none."""
    found = _LEFT.search(path)
    return None if found is None else found[0].lstrip("/")


def few(names: Iterable[str]) -> str:
    """Names in a sentence, at most five of them."""
    listed: Sequence[str] = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5:,} more" if len(listed) > 5 else "")
