"""Data modules, independent of models and tasks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.arrays.datamodule import ArrayDataModule
    from datamodules.batching import Batch
    from datamodules.images.cifar10 import SequentialCIFARDataModule
    from datamodules.images.imagenet import ImageNetDataModule
    from datamodules.listops import ListOpsDataModule
    from datamodules.ptbxl import ECGBatch, PTBXLDataModule
    from datamodules.synthetic import DigitsDataModule, SelectiveCopyingDataModule

__all__ = [
    "ArrayDataModule",
    "Batch",
    "DigitsDataModule",
    "ECGBatch",
    "ImageNetDataModule",
    "ListOpsDataModule",
    "PTBXLDataModule",
    "SelectiveCopyingDataModule",
    "SequentialCIFARDataModule",
]

_HOMES = {
    "ArrayDataModule": "datamodules.arrays.datamodule",
    "Batch": "datamodules.batching",
    "DigitsDataModule": "datamodules.synthetic",
    "ECGBatch": "datamodules.ptbxl",
    "ImageNetDataModule": "datamodules.images.imagenet",
    "ListOpsDataModule": "datamodules.listops",
    "PTBXLDataModule": "datamodules.ptbxl",
    "SelectiveCopyingDataModule": "datamodules.synthetic",
    "SequentialCIFARDataModule": "datamodules.images.cifar10",
}


def __getattr__(name: str) -> Any:
    """Imports a public class at its first use."""
    # Lightning and timm take seconds to import, and reading a recording does without.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
