"""Faults of a data set on disk, one by one or summed up by folder."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

FEW = 5  # faults of one kind in a folder are listed one by one up to this number


class Fault(NamedTuple):
    """One fault.

    Attributes:
        folder: where it is.
        text: the whole sentence, which begins with the file or folder.
        missing: whether something is missing, rather than wrong.
    """

    folder: str
    text: str
    missing: bool = False

    def __str__(self) -> str:
        """The whole sentence."""
        return self.text


def summary(faults: Iterable[Fault]) -> list[str]:
    """Lists faults line by line, but more than `FEW` of one kind in a folder as a single line."""
    listed = list(faults)
    counts = Counter((fault.folder, fault.missing) for fault in listed)
    lines, told = [], set()
    for folder, text, missing in listed:
        if (count := counts[folder, missing]) <= FEW:
            lines.append(text)
        elif (folder, missing) not in told:
            told.add((folder, missing))
            lines.append(
                f"{folder}: {count:,} faults of what is {'missing' if missing else 'there'}, the first: {text}"
            )
    return lines
