"""Data modules, independent of models and tasks."""

from datamodules.batching import Batch
from datamodules.cifar10 import SequentialCIFARDataModule
from datamodules.digits import DigitsDataModule
from datamodules.imagenet import ImageNetDataModule
from datamodules.listops import ListOpsDataModule
from datamodules.ptbxl import ECGBatch, PTBXLDataModule
from datamodules.synthetic_tokens import SelectiveCopyingDataModule

__all__ = [
    "Batch",
    "DigitsDataModule",
    "ECGBatch",
    "ImageNetDataModule",
    "ListOpsDataModule",
    "PTBXLDataModule",
    "SelectiveCopyingDataModule",
    "SequentialCIFARDataModule",
]
