"""What is wrong with a data set on disk, one fault after the other or folder by folder."""

from collections import Counter
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
