"""Loaders: one whose position is part of a checkpoint, and the handling of worker processes in all of them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from datamodules.batching import Batch, LengthBucketBatchSampler
from msssm.errors import InputError

# Without a timeout, a loader waits forever for a worker that cannot pass on a batch, as when shared memory is full.
WORKER_TIMEOUT = 300  # seconds
OUTLIVES = 10  # seconds, after a SIGTERM


class WorkerError(InputError, RuntimeError):
    """Loader process that died or did not answer in time; the message says what to do."""


def lost_worker(error: BaseException) -> str | None:
    """Message for torch's error about a lost loader process, or None for any other error.

    Torch raises it in the main process at whatever point that has reached, possibly far from the loader.
    """
    text = str(error)
    if not isinstance(error, RuntimeError) or not text.startswith(("DataLoader worker (pid", "DataLoader timed out")):
        return None
    what = text.split(". ")[0].removeprefix("DataLoader ").rstrip(". ")
    return (
        f"a loader process was lost: {what}; one that was killed has usually run out of memory or /dev/shm, a silent "
        "one waits for a disk. Use fewer by --data.num_workers (0 loads in the main process), and run it again"
    )


def worker_options(num_workers: int) -> dict[str, Any]:
    """Options of every loader, besides its data."""
    return {
        "num_workers": num_workers,
        "timeout": WORKER_TIMEOUT if num_workers else 0,
        "pin_memory": torch.cuda.is_available(),
        # A separate one: the seed that a DataLoader draws at each start must not shift the model's random numbers.
        "generator": torch.Generator(),
        "worker_init_fn": outlive_signals,
    }


def outlive_signals(worker: int) -> None:
    """Lets a worker process end some seconds after SIGTERM instead of at once.

    Schedulers signal all processes of a job, but the main process needs its loader to finish the batch. Torch ends a
    stuck worker by the same signal, so that the worker must end eventually.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.setitimer(signal.ITIMER_REAL, OUTLIVES) and None)


class Loader(DataLoader[Any]):
    """`DataLoader` that reports in one line that a worker process died, did not answer, or met bad input.

    Raises:
        WorkerError: a worker died or did not answer.
        InputError: raised by a worker, without the worker's traceback.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Iterates over the batches."""
        batches = super().__iter__()
        with _told():
            try:
                yield from batches
            except Exception:
                # The frames of an error hold the iterator in a cycle. Collected with them, its queues are closed before
                # it can send its processes home through them, and it waits 10 s before it kills them.
                if isinstance(batches, _MultiProcessingDataLoaderIter):
                    batches._shutdown_workers()
                    self._iterator = None  # kept where processes persist
                raise


class ResumableLoader(Loader):
    """Training loader that resumes exactly where a checkpoint was written, within an epoch or at its end.

    Lightning stores and restores its state through `state_dict` and `load_state_dict`. The order is a function of
    (seed, epoch), so that the state is a position, independent of worker processes and their prefetching.

    Args:
        dataset: returns a `Batch` for a list of indices.
        sampler: Sampler of the batches of this process.
        num_workers: loader processes.
    """

    def __init__(self, dataset: Dataset[Batch], sampler: LengthBucketBatchSampler, *, num_workers: int = 0) -> None:
        """Starts at the beginning of epoch 0."""
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            persistent_workers=num_workers > 0,
            **worker_options(num_workers),
        )
        self._position = (0, 0)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Iterates over the batches that are left in this epoch."""
        # A generator: the epoch is read at the first batch, since Lightning calls iter() before set_epoch().
        sampler = self._batches
        for done, batch in enumerate(super().__iter__(), start=sampler.done_before + 1):
            self._position = (sampler.epoch, done)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Position in the training: epoch, and batches done in it."""
        epoch, done = self._position
        return {"epoch": epoch, "done": done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resumes at a position."""
        self._batches.resume(state["epoch"], state["done"])

    @property
    def _batches(self) -> LengthBucketBatchSampler:
        assert isinstance(self.sampler, LengthBucketBatchSampler)
        return self.sampler


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        # A worker's error arrives as text: its traceback, then the name of the class and the message.
        _, _, message = str(error).rpartition(f".{type(error).__name__}: ")
        raise type(error)(message.strip()) from error
    except RuntimeError as error:
        if (reason := lost_worker(error)) is None:
            raise
        raise WorkerError(reason) from error
