"""A training loader whose position is part of a checkpoint."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.base import Batch, LengthBucketBatchSampler

# A worker that cannot hand a batch over, as when shared memory is full, is otherwise waited for without end.
WORKER_TIMEOUT = 300  # seconds


class ResumableLoader(DataLoader[Batch]):
    """Training loader that continues exactly where a checkpoint was written, within an epoch or at its end.

    Lightning stores and restores its state because it has `state_dict` and `load_state_dict`. The order is
    a function of (seed, epoch), so the state is a position: worker processes and their prefetching do not
    enter.

    Args:
        dataset: returns a `Batch` for a list of indices.
        sampler: of the batches of this process.
        num_workers: loader processes.
        pin_memory: as in `DataLoader`.
    """

    def __init__(
        self,
        dataset: Dataset[Batch],
        sampler: LengthBucketBatchSampler,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            timeout=WORKER_TIMEOUT if num_workers else 0,
            pin_memory=pin_memory,
            # Its own: the seed that a DataLoader draws at each start must not shift the model's random numbers.
            generator=torch.Generator(),
        )
        self._position = (0, 0)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator: the epoch is read at the first batch, since Lightning calls iter() before set_epoch().
        sampler = self._batches
        for done, batch in enumerate(super().__iter__(), start=sampler.done_before + 1):
            self._position = (sampler.epoch, done)
            yield batch

    def state_dict(self) -> dict[str, int]:
        epoch, done = self._position
        return {"epoch": epoch, "done": done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._batches.resume(state["epoch"], state["done"])

    @property
    def _batches(self) -> LengthBucketBatchSampler:
        assert isinstance(self.sampler, LengthBucketBatchSampler)
        return self.sampler
