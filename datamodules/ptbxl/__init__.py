"""PTB-XL: its files, labels, conversion and data module, and a generator of the same format."""

from datamodules.ptbxl.datamodule import ECGBatch, PTBXLDataModule
from datamodules.ptbxl.files import read_database, read_statements
from datamodules.ptbxl.labels import LABEL_SETS, aggregate_labels, class_names, multi_hot
from datamodules.ptbxl.record import LEADS, CorruptRecordError, Record, read_record
from datamodules.ptbxl.recording import Recording, find_recordings, read_recording
from datamodules.ptbxl.synthetic import generate, simulate
from datamodules.ptbxl.verify import verify

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
