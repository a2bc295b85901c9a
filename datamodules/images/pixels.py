"""Small images as sequences of pixels, stored as bytes."""

from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import SPLITS, DataModule, not_set_up
from datamodules.batching import Batch

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


class PixelDataset(Dataset[Batch]):
    """Batches of bytes, indexed by a list of indices, as the batch samplers yield them.

    `rows` are those of this split in `pixels` (all images, L, C) and `labels` (all images,).
    """

    def __init__(self, pixels: Bytes, labels: Bytes, rows: Ints) -> None:
        """Stores the arrays."""
        self.pixels, self.labels, self.rows = pixels, labels, rows

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def __getitem__(self, indices: int | list[int]) -> Batch:
        """The images of a list of indices, as bytes."""
        chosen = np.atleast_1d(indices)
        rows = self.rows[chosen]
        lengths = torch.full((len(rows),), self.pixels.shape[1], dtype=torch.int64)
        y = torch.from_numpy(self.labels[rows].astype(np.int64))
        return Batch(torch.from_numpy(self.pixels[rows]), y, lengths, torch.from_numpy(chosen))


class PixelDataModule(DataModule):
    """Base of the data modules of small images: loaders of bytes, converted to floats on the device.

    A loader returns `Batch` with x (B, L, C) uint8. `on_after_batch_transfer`, which Lightning calls, converts x to
    float32 by `to_float`: the loader moves a quarter of the bytes and computes nothing.
    """

    num_classes = 10

    def __init__(self, batch_size: int, eval_batch_size: int | None, num_workers: int, shuffle_seed: int) -> None:
        """Checks the sizes. Raises ValueError for sizes below 1."""
        super().__init__(batch_size, eval_batch_size, num_workers, shuffle_seed)
        self._splits: dict[str, PixelDataset] = {}

    def load(self) -> dict[str, PixelDataset]:
        """Loads the splits `train`, `val` and `test`."""
        raise NotImplementedError

    def to_float(self, x: Tensor) -> Tensor:
        """Converts (B, L, C) uint8 to normalised float32."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Loads the splits, once."""
        self._splits = self._splits or self.load()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Converts bytes to floats on the device."""
        return batch._replace(x=self.to_float(batch.x))

    def split(self, name: str) -> PixelDataset:
        """The images of a split."""
        if name not in self._splits:
            raise not_set_up(f"the {name} data")
        return self._splits[name]

    @property
    def digest(self) -> str:
        """sha256 of pixels and labels, split by split."""
        digest = sha256()
        for name in SPLITS:
            data = self.split(name)
            digest.update(f"{name}:{len(data)};".encode())
            digest.update(data.labels[data.rows].tobytes())
            digest.update(np.ascontiguousarray(data.pixels[data.rows]).data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Counts, digest, length and classes."""
        return {**super().describe(), "length": self.split("train").pixels.shape[1], "classes": self.num_classes}
