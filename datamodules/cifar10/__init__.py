"""CIFAR-10 as sequences of pixels: published archives or images, their conversion, the data module."""

from datamodules.cifar10 import files
from datamodules.cifar10.datamodule import SequentialCIFARDataModule
from datamodules.cifar10.verify import verify

__all__ = ["SequentialCIFARDataModule", "files", "verify"]
