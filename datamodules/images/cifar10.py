"""The data module of sequential CIFAR-10: images of 32 x 32 pixels as sequences of 1,024."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.images import cifar10_files as files
from datamodules.images.pixels import PixelDataModule, PixelDataset
from msssm.errors import InputError
from msssm.paths import local_path

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of pixels in 0..1
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, PIL's mode L
GREY_MEAN, GREY_STD = (122.6 / 255,), (61.0 / 255,)  # S4's
SPLIT_SEED = 42


class SequentialCIFARDataModule(PixelDataModule):
    """CIFAR-10 (Krizhevsky 2009), 45,000 / 5,000 / 10,000 images, no augmentation.

    Batches are `Batch(x (B, 1024, C), y (B,), lengths, sample_index)`, x float32 in raster order, normalised. The
    validation images are the last tenth of torch's permutation of the training images with seed 42, as in S4 and its
    followers. Class folders are read class by class and by file name, so that this permutation holds out other images
    than in the batch files: validation figures are not comparable. Test figures are, unless the images are JPEG, which
    is lossy (`describe()` names their format).

    Args:
        root: folder of data sets; CIFAR-10 is expected in `<root>/cifar10`, where its conversion is stored.
        source: the data set, if it is elsewhere; only read. `cifar-10-python.tar.gz`, a folder with it or with its
            files, or one with images (PNG or JPEG) as train/<class>/*.png and test/<class>/*.png.
        download: download the archive into `<root>/cifar10` if it is not there.
        greyscale: one channel instead of three: 0.299 R + 0.587 G + 0.114 B, not rounded, normalised by S4's mean
            122.6 / 255 and standard deviation 61 / 255.
        permutation_seed: permute the pixels of all images alike (pCIFAR); None for raster order.
        batch_size: training images per step, over all processes.
        eval_batch_size: images per step of validate and test; default `batch_size`.
        num_workers: loader processes; the main process alone loads faster than any model trains.
        shuffle_seed: the order of training batches is a function of it and of the epoch.
    """

    def __init__(
        self,
        root: str = "data",
        source: str | None = None,
        download: bool = False,
        greyscale: bool = False,
        permutation_seed: int | None = None,
        batch_size: int = 50,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        shuffle_seed: int = 0,
    ) -> None:
        """Checks the options. Raises ValueError for sizes below 1 or a negative seed."""
        super().__init__(batch_size, eval_batch_size, num_workers, shuffle_seed)
        if permutation_seed is not None and permutation_seed < 0:
            raise InputError(f"permutation_seed must be at least 0, got {permutation_seed}")
        self.folder = local_path(root) / "cifar10"
        self.source = self.folder if source is None else local_path(source)
        self.download, self.greyscale, self.permutation_seed = download, greyscale, permutation_seed
        self.num_channels = 1 if greyscale else 3
        self._mean, self._std = torch.tensor((GREY_MEAN, GREY_STD) if greyscale else (MEAN, STD))
        self._luma, self._order = torch.tensor(LUMA), torch.arange(1024)
        if permutation_seed is not None:
            self._order = torch.from_numpy(np.random.default_rng(permutation_seed).permutation(1024))
        self._form = ""

    def prepare_data(self) -> None:
        """Downloads the archive if requested, and converts it if that has not been done."""
        if self.download:
            files.download(self.folder)
        files.convert(self.source, self.folder)

    def load(self) -> dict[str, PixelDataset]:
        """Memory-maps the conversion and holds out the validation images."""
        data = files.load(files.locate(self.source, self.folder))
        self._form = data.form
        order = torch.randperm(data.train, generator=torch.Generator().manual_seed(SPLIT_SEED)).numpy()
        train = data.train - data.train // 10
        rows = {"train": order[:train], "val": order[train:], "test": np.arange(data.train, len(data.labels))}
        return {name: PixelDataset(data.pixels, data.labels, own) for name, own in rows.items()}

    def to_float(self, x: Tensor) -> Tensor:
        """Converts pixels (B, 1024, 3) uint8 to float32 (B, 1024, C): permuted, grey if requested, normalised."""
        if self.permutation_seed is not None:
            x = x[:, self._order.to(x.device)]
        pixels = x.float() / 255
        if self.greyscale:
            pixels = (pixels * self._luma.to(x.device)).sum(-1, keepdim=True)
        return (pixels - self._mean.to(x.device)) / self._std.to(x.device)

    def describe(self) -> dict[str, Any]:
        """Counts, digest, format of the images, and preprocessing."""
        chosen = {"greyscale": self.greyscale, "permutation_seed": self.permutation_seed}
        return {**super().describe(), "form": self._form, **chosen}
