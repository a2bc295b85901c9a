"""Data modules; they know nothing of models and tasks."""

from datamodules.base import Batch
from datamodules.listops import ListOpsDataModule

__all__ = ["Batch", "ListOpsDataModule"]
