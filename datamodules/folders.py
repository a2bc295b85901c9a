"""Files and folders that systems and programs leave among the data."""

import re
from collections.abc import Iterable, Sequence

# Hidden ones (.ipynb_checkpoints, .DS_Store, ._x.jpg), and those of archivers, servers and recycle bins.
_LEFT = re.compile(
    r"(?:^|/)(?:\.[^/]*|(?:__MACOSX|@eaDir|#recycle|\$RECYCLE\.BIN|System Volume Information|lost\+found|"
    r"Thumbs\.db|desktop\.ini)(?=/|$))",
    re.IGNORECASE,
)


def left_by_a_system(path: str) -> str | None:
    """First part of a relative path that is hidden or that a system left, or None.

    For example, `.ipynb_checkpoints` in `cat/.ipynb_checkpoints/x.jpg`.
    """
    found = _LEFT.search(path)
    return None if found is None else found[0].lstrip("/")


def few(names: Iterable[str]) -> str:
    """Lists names in a sentence, at most five of them."""
    listed: Sequence[str] = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5:,} more" if len(listed) > 5 else "")
