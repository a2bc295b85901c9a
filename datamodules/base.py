"""The base of all data modules: loaders of the splits, divided among processes, and a description of the data."""

from typing import Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.batching import Batch, EvaluationBatchSampler, LengthBucketBatchSampler
from datamodules.loader import Loader, ResumableLoader, worker_options
from msssm.errors import InputError

SPLITS = ("train", "val", "test")


class DataModule(LightningDataModule):
    """Batches of the splits `train`, `val` and `test`, divided among the processes of a training.

    The order of training is a function of (shuffle_seed, epoch) for any number of processes and workers, and resumes
    exactly from a checkpoint; every sample is evaluated once, in the same order. A subclass defines `split` and, if
    they differ, the samples' `lengths` and the `training_sampler`.

    Args:
        batch_size: training samples per step, over all processes.
        eval_batch_size: samples per step of validate, test and predict; default `batch_size`.
        num_workers: loader processes.
        shuffle_seed: the order of training batches is a function of it and of the epoch.
    """

    def __init__(self, batch_size: int, eval_batch_size: int | None, num_workers: int, shuffle_seed: int) -> None:
        """Checks the sizes. Raises ValueError for sizes below 1."""
        super().__init__()
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        if min(batch_size, eval_batch_size) < 1 or num_workers < 0:
            raise InputError(
                f"asked for batch_size={batch_size}, eval_batch_size={eval_batch_size}, num_workers={num_workers}; "
                "sizes must be at least 1, num_workers at least 0"
            )
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.shuffle_seed = num_workers, shuffle_seed

    def split(self, name: str) -> Dataset[Any]:
        """The data of a split, which returns a whole batch for a list of indices.

        Raises:
            RuntimeError: before `setup`.
        """
        raise NotImplementedError

    def lengths(self, split: str) -> npt.ArrayLike:
        """Length of each sample of a split, (samples,); here all are equal."""
        return np.ones(len(self.split(split)))  # type: ignore[arg-type]

    def counts(self) -> dict[str, int]:
        """Samples of each split."""
        return {name: len(self.split(name)) for name in SPLITS}  # type: ignore[arg-type]

    def training_sampler(self, batch_size: int, rank: int, world_size: int) -> LengthBucketBatchSampler:
        """Training batches of one of `world_size` processes, `batch_size` samples each."""
        return LengthBucketBatchSampler(
            self.lengths("train"), batch_size, seed=self.shuffle_seed, rank=rank, world_size=world_size
        )

    @property
    def digest(self) -> str:
        """sha256 of all data that is trained and evaluated on."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Counts and digest; subclasses add how the data was made."""
        return {"counts": self.counts(), "digest": self.digest}

    def train_dataloader(self) -> DataLoader[Batch]:
        """This process's training batches."""
        rank, world_size = self.shard
        sampler = self.training_sampler(self.share_of_batch, rank, world_size)
        return ResumableLoader(self.split("train"), sampler, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        """This process's share of the validation samples."""
        return self.evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """This process's share of the test samples."""
        return self.evaluation_loader("test")

    def evaluation_loader(self, split: str, *, sort: bool = True) -> DataLoader[Batch]:
        """Loads every sample of a split once over all processes, sorted by length or in the split's own order."""
        rank, world_size = self.shard
        sampler = EvaluationBatchSampler(
            self.lengths(split), self.eval_batch_size, rank=rank, world_size=world_size, sort=sort
        )
        return Loader(
            self.split(split),
            batch_size=None,  # the sampler yields batches
            sampler=sampler,
            persistent_workers=self.num_workers > 0,
            **worker_options(self.num_workers),
        )

    @property
    def shard(self) -> tuple[int, int]:
        """Rank of this process, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    @property
    def share_of_batch(self) -> int:
        """Training samples per step of each process. Raises ValueError where they cannot be divided evenly."""
        return self.share_of(self.batch_size)

    def share_of(self, batch_size: int) -> int:
        """Samples of each process in a batch of all. Raises ValueError where they cannot be divided evenly."""
        _, world_size = self.shard
        if batch_size % world_size:
            raise InputError(
                f"batch_size={batch_size} cannot be shared evenly by {world_size} processes; "
                "choose another --trainer.devices or --data.batch_size"
            )
        return batch_size // world_size


def not_set_up(what: str) -> RuntimeError:
    """Error of a data module whose data is requested before `setup`."""
    return RuntimeError(f"asked for {what}, got none; call prepare_data() and setup() first")
