"""PTB-XL: its files, labels, conversion and data module, and a generator of the same format."""

from typing import TYPE_CHECKING, Any

from datamodules.ptbxl.errors import CorruptRecordError
from datamodules.ptbxl.files import read_database, read_statements
from datamodules.ptbxl.labels import LABEL_SETS, aggregate_labels, class_names, multi_hot
from datamodules.ptbxl.leads import LEADS
from datamodules.ptbxl.record import Record, read_record
from datamodules.ptbxl.recording import Recording, find_recordings, read_recording
from datamodules.ptbxl.synthetic import generate, simulate
from datamodules.ptbxl.verify import verify

if TYPE_CHECKING:
    from datamodules.ptbxl.datamodule import ECGBatch, PTBXLDataModule

__all__ = [
    "LABEL_SETS",
    "LEADS",
    "CorruptRecordError",
    "ECGBatch",
    "PTBXLDataModule",
    "Record",
    "Recording",
    "aggregate_labels",
    "class_names",
    "find_recordings",
    "generate",
    "multi_hot",
    "read_database",
    "read_record",
    "read_recording",
    "read_statements",
    "simulate",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Imports the data module at its first use."""
    # The data module imports Lightning, which takes seconds, and reading a recording does without.
    if name not in ("ECGBatch", "PTBXLDataModule"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from datamodules.ptbxl import datamodule

    return getattr(datamodule, name)
