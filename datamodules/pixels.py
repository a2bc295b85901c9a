"""Small images held as bytes, handed out as sequences of pixels."""

from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.base import Batch, EvaluationBatchSampler, LengthBucketBatchSampler
from datamodules.errors import InputError
from datamodules.loader import ResumableLoader

_PIN_MEMORY = torch.cuda.is_available()

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


class PixelDataset(Dataset[Batch]):
    """Whole batches of bytes: indexed by a list of indices, as the batch samplers yield them.

    Args:
        pixels: (all images, L, C) uint8, possibly a memory map.
        labels: (all images,) classes.
        rows: (images,) rows of this split.
    """

    def __init__(self, pixels: Bytes, labels: Bytes, rows: Ints) -> None:
        self.pixels, self.labels, self.rows = pixels, labels, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: int | list[int]) -> Batch:
        chosen = np.atleast_1d(indices)
        rows = self.rows[chosen]
        lengths = torch.full((len(rows),), self.pixels.shape[1], dtype=torch.int64)
        y = torch.from_numpy(self.labels[rows].astype(np.int64))
        return Batch(torch.from_numpy(self.pixels[rows]), y, lengths, torch.from_numpy(chosen))


class PixelDataModule(LightningDataModule):
    """What the data modules of small images share: loaders of bytes, made numbers on the device.

    A loader hands out `Batch` with x (B, L, C) uint8. `on_after_batch_transfer`, which Lightning calls, makes x
    float32 by `to_float`: a loader then moves a quarter of the bytes and computes nothing.

    Args:
        batch_size: training images per step, over all processes.
        eval_batch_size: images per step of validate and test; default `batch_size`.
        num_workers: loader processes.
        shuffle_seed: the order of training batches is a function of it and of the epoch.

    Raises:
        ValueError: for sizes below 1.
    """

    num_classes = 10

    def __init__(self, batch_size: int, eval_batch_size: int | None, num_workers: int, shuffle_seed: int) -> None:
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        if min(batch_size, eval_batch_size) < 1 or num_workers < 0:
            raise InputError(
                f"asked for batch_size={batch_size}, eval_batch_size={eval_batch_size}, num_workers={num_workers}; "
                "sizes must be at least 1, num_workers at least 0"
            )
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.shuffle_seed = num_workers, shuffle_seed
        self._splits: dict[str, PixelDataset] = {}

    def load(self) -> dict[str, PixelDataset]:
        """The splits `train`, `val`, `test`."""
        raise NotImplementedError

    def to_float(self, x: Tensor) -> Tensor:
        """(B, L, C) uint8 -> float32, normalised."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        if not self._splits:
            self._splits = self.load()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return batch._replace(x=self.to_float(batch.x))

    def train_dataloader(self) -> DataLoader[Batch]:
        dataset = self._split("train")
        rank, world_size = self._shard
        if self.batch_size % world_size:
            raise InputError(
                f"batch_size={self.batch_size} cannot be shared evenly by {world_size} processes; "
                "choose another --trainer.devices or --data.batch_size"
            )
        sampler = LengthBucketBatchSampler(
            np.ones(len(dataset)),
            self.batch_size // world_size,
            seed=self.shuffle_seed,
            rank=rank,
            world_size=world_size,
        )
        return ResumableLoader(dataset, sampler, num_workers=self.num_workers, pin_memory=_PIN_MEMORY)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader("test")

    @property
    def digest(self) -> str:
        """sha256 of pixels and labels, split by split."""
        digest = sha256()
        for name in ("train", "val", "test"):
            data = self._split(name)
            digest.update(f"{name}:{len(data)};".encode())
            digest.update(data.labels[data.rows].tobytes())
            digest.update(np.ascontiguousarray(data.pixels[data.rows]).data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Counts, shape of an image's sequence, digest."""
        return {
            "counts": {name: len(data) for name, data in self._splits.items()},
            "length": self._split("train").pixels.shape[1],
            "classes": self.num_classes,
            "digest": self.digest,
        }

    @property
    def _shard(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _split(self, name: str) -> PixelDataset:
        if name not in self._splits:
            raise RuntimeError(f"asked for the {name} data, got none; call prepare_data() and setup() first")
        return self._splits[name]

    def _evaluation_loader(self, split: str) -> DataLoader[Batch]:
        dataset = self._split(split)
        rank, world_size = self._shard
        sampler = EvaluationBatchSampler(
            np.ones(len(dataset)), self.eval_batch_size, rank=rank, world_size=world_size, sort=False
        )
        return DataLoader(
            dataset,
            batch_size=None,  # the sampler makes the batches
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=_PIN_MEMORY,
        )
