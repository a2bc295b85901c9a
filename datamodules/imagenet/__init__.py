"""ImageNet, or any other image folder, tar, WebDataset or Hugging Face data set that timm reads."""

from datamodules.imagenet.datamodule import ImageNetDataModule

__all__ = ["ImageNetDataModule"]
