"""CIFAR-10 as sequences of pixels: its published archives, one conversion, the data module."""

from datamodules.cifar10.datamodule import SequentialCIFARDataModule

__all__ = ["SequentialCIFARDataModule"]
