"""Readers of recordings, one file per format.

A reader takes the path and the names of the columns that the user gave, if any, and returns `Contents`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from datamodules.ptbxl.readers.array import read_array
from datamodules.ptbxl.readers.contents import Contents
from datamodules.ptbxl.readers.dicom import read_dicom
from datamodules.ptbxl.readers.edf import read_edf
from datamodules.ptbxl.readers.table import read_table
from datamodules.ptbxl.readers.wfdb_record import read_wfdb

READERS: dict[str, Callable[[Path, Sequence[str] | None], Contents]] = {
    ".hea": read_wfdb,
    **dict.fromkeys((".edf", ".bdf"), read_edf),
    ".dcm": read_dicom,
    **dict.fromkeys((".npy", ".npz"), read_array),
    **dict.fromkeys((".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz"), read_table),
}


def ending(path: Path) -> str:
    """Which ending of `READERS` a file's name has, or ""."""
    name = path.name.lower()
    return next((ending for ending in READERS if name.endswith(ending)), "")
