"""Data modules; they know nothing of models and tasks."""

from datamodules.base import Batch
from datamodules.listops import ListOpsDataModule
from datamodules.ptbxl import ECGBatch, PTBXLDataModule

__all__ = ["Batch", "ECGBatch", "ListOpsDataModule", "PTBXLDataModule"]
