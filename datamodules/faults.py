"""What is wrong with a data set on disk, one fault after the other or folder by folder."""

from collections.abc import Iterable
from typing import NamedTuple

FEW = 5  # faults of a kind in a folder, which are named one by one


class Fault(NamedTuple):
    """One fault.

    Attributes:
        folder: that it is in.
        text: the whole sentence, which begins with the file or folder.
        missing: whether something is not there; else it is not what it should be.
    """

    folder: str
    text: str
    missing: bool = False

    def __str__(self) -> str:
        return self.text


def summary(faults: Iterable[Fault]) -> list[str]:
    """One line per fault, and where a folder has more than `FEW` of a kind, one line for all of these."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for fault in faults:
        groups.setdefault((fault.folder, fault.missing), []).append(fault.text)
    lines = []
    for (folder, missing), texts in groups.items():
        if len(texts) <= FEW:
            lines += texts
        else:
            kind = "of what is missing" if missing else "of what is there"
            lines.append(f"{folder}: {len(texts):,} faults {kind}, the first: {texts[0]}")
    return lines
