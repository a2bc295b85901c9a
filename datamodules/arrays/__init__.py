"""Anyone's own sequences: `.npy` files and a table, or arrays."""

from datamodules.arrays.augmentation import Augmentation
from datamodules.arrays.datamodule import ArrayDataModule
from datamodules.arrays.source import Target

__all__ = ["ArrayDataModule", "Augmentation", "Target"]
