"""scikit-learn's handwritten digits as sequences of 64 pixels: real images without a download."""

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from datamodules.images.pixels import Ints, PixelDataModule, PixelDataset

SIZES = {"train": 1_197, "val": 200, "test": 400}
LEVELS = 16  # a pixel is the number of black ones, 0..16, among 4 x 4
SPLIT_SEED = 42


def stratified_split(labels: npt.NDArray[np.uint8], sizes: dict[str, int], seed: int) -> dict[str, Ints]:
    """Splits all rows into disjoint sets of the given sizes, each with every class in proportion, up to two images.

    The rows are shuffled, then sorted by class; every k-th one goes to the last split, of the remaining ones every k-th
    to the split before it, and so on.
    """
    rows = np.random.default_rng(seed).permutation(len(labels))
    left = rows[np.argsort(labels[rows], kind="stable")]
    split = {}
    for name, size in reversed(sizes.items()):
        picked = np.arange(size) * len(left) // size
        split[name] = np.sort(left[picked])
        left = np.delete(left, picked)
    return {name: split[name] for name in sizes}


class DigitsDataModule(PixelDataModule):
    """Optical digits (Alpaydin & Kaynak 1998) as scikit-learn ships them: 1,797 images of 8 x 8 pixels, 17 levels.

    Batches are `Batch(x (B, 64, 1), y (B,), lengths, sample_index)`, x float32 in raster order, normalised by mean and
    standard deviation of the training pixels. The split is stratified with seed 42: 1,197 / 200 / 400. The writers of
    the images are unknown, so that one writer may be in several splits.

    Args:
        batch_size: training images per step, over all processes.
        eval_batch_size: images per step of validate and test; default `batch_size`.
        num_workers: loader processes.
        shuffle_seed: the order of training batches is a function of it and of the epoch.
    """

    num_channels = 1

    def __init__(
        self, batch_size: int = 50, eval_batch_size: int | None = None, num_workers: int = 0, shuffle_seed: int = 0
    ) -> None:
        """Checks the options. Raises ValueError for sizes below 1."""
        super().__init__(batch_size, eval_batch_size, num_workers, shuffle_seed)
        self.mean, self.std = 0.0, 1.0

    def load(self) -> dict[str, PixelDataset]:
        """Splits the images and computes the training pixels' mean and standard deviation."""
        from sklearn.datasets import load_digits  # takes a second to import

        images, labels = load_digits(return_X_y=True)
        pixels, labels = images.astype(np.uint8)[..., None], labels.astype(np.uint8)
        splits = stratified_split(labels, SIZES, SPLIT_SEED)
        train = pixels[splits["train"]] / LEVELS
        self.mean, self.std = float(train.mean()), float(train.std())
        return {name: PixelDataset(pixels, labels, rows) for name, rows in splits.items()}

    def to_float(self, x: Tensor) -> Tensor:
        """Standardises the pixels."""
        return (x.float() / LEVELS - self.mean) / self.std

    def describe(self) -> dict[str, Any]:
        """Counts, digest, mean and standard deviation."""
        return {**super().describe(), "mean": self.mean, "std": self.std}
