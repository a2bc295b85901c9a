"""The batch of every data module, and samplers of batches of sequences of unequal length."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from msssm.errors import InputError


class Batch(NamedTuple):
    """One batch: B sequences padded to the length L of the longest.

    Attributes:
        x: (B, L) int64 token ids, or (B, L, C) float32 signals.
        y: (B,) int64 classes, (B, K) float32 multi-hot labels or values, or (B, L) int64 classes of the steps.
        lengths: (B,) int64 number of valid positions; the rest is padding.
        sample_index: (B,) int64 row of each sample in its split, if the data module provides it.
    """

    x: Tensor
    y: Tensor
    lengths: Tensor
    sample_index: Tensor | None = None


def collate_tokens(rows: Sequence[npt.NDArray[np.uint8]], labels: npt.ArrayLike, pad: int = 0) -> Batch:
    """Pads rows of token ids on the right with `pad`, to the length of the longest."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    x = np.full((len(rows), lengths.max()), pad, dtype=np.int64)
    for target, row in zip(x, rows, strict=True):
        target[: len(row)] = row
    return Batch(torch.from_numpy(x), torch.tensor(labels, dtype=torch.int64), torch.from_numpy(lengths))


class _BatchSampler(DistributedSampler[list[int]]):
    """Sampler of lists of indices, for `DataLoader(dataset, sampler=..., batch_size=None)`.

    It shards over ranks itself. Its base class tells Lightning not to replace it, and Lightning calls `set_epoch` on a
    `sampler` but not on a `batch_sampler`.
    """

    def __init__(self, lengths: npt.ArrayLike, batch_size: int, *, rank: int, world_size: int, **kwargs: Any) -> None:
        """Checks the options, of which `kwargs` are those of `DistributedSampler`."""
        self.lengths = np.asarray(lengths)
        if self.lengths.ndim != 1 or batch_size < 1:
            raise InputError(
                f"asked for batches of {batch_size} from lengths of shape {self.lengths.shape}; "
                "give batch_size >= 1 and one length per sample"
            )
        if kwargs.get("seed", 0) < 0:
            raise InputError(f"asked for the order of seed {kwargs['seed']}; give a shuffle_seed of at least 0")
        super().__init__(self.lengths, num_replicas=world_size, rank=rank, **kwargs)  # type: ignore[arg-type]
        self.batch_size, self.world_size = batch_size, world_size


class LengthBucketBatchSampler(_BatchSampler):
    """Training batches of similar length, in an order that is a pure function of (seed, epoch).

    The shuffled samples are divided into pools of `pool_batches` batches; each pool is sorted by length and cut into
    batches, and the batches are shuffled. A batch is divided evenly among all ranks, so that it has the same samples
    for every number of ranks; the up to `world_size - 1` samples of an epoch that do not divide evenly are left out.

    Args:
        lengths: (samples,) length of each sample.
        batch_size: samples per batch and rank.
        seed: Seed of the order, together with the epoch.
        pool_batches: batches per pool: more of them give less padding and less random batches. Samples that fill a
            single pool have almost the same neighbours in every epoch.
        rank: Rank of this process.
        world_size: number of processes.
        drop_last: leave out the last batch if it is smaller than the others.
        first: every epoch begins with the first so many samples, in batches of their own.
        first_batch_size: samples per batch and rank of those; default `batch_size`.
    """

    def __init__(
        self,
        lengths: npt.ArrayLike,
        batch_size: int,
        *,
        seed: int,
        pool_batches: int = 50,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        first: int = 0,
        first_batch_size: int | None = None,
    ) -> None:
        """Counts the batches. Raises ValueError if there is none for each rank."""
        super().__init__(lengths, batch_size, rank=rank, world_size=world_size, seed=seed, drop_last=drop_last)
        self.pool_batches = pool_batches
        self._resume = (0, 0)
        self._parts = [(range(first, len(self.lengths)), batch_size)]
        if first:
            self._parts.insert(0, (range(first), first_batch_size or batch_size))
        self._batches = []  # of each part
        for part, size in self._parts:
            whole, rest = divmod(len(part), size * world_size)
            self._batches.append(whole + (not drop_last and rest >= world_size))
            if self._batches[-1] < 1:
                raise InputError(
                    f"asked for batches of {size} on each of {world_size} processes, got {len(part)} "
                    "samples, not one batch each; use a smaller batch_size or fewer processes"
                )

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return sum(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        """Iterates over the batches of this epoch that are left."""
        yield from self._order()[self.done_before :]

    @property
    def done_before(self) -> int:
        """Batches of this epoch that are skipped, since they preceded the checkpoint."""
        epoch, done = self._resume
        return done if self.epoch == epoch else 0

    def resume(self, epoch: int, done: int) -> None:
        """Resumes a run: skips the first `done` batches of this rank in `epoch`. `len` stays the same."""
        self.set_epoch(epoch)
        self._resume = (epoch, done)

    def _order(self) -> list[list[int]]:
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, self.epoch])))
        shuffled: list[npt.NDArray[np.int64]] = []
        for (part, size), count in zip(self._parts, self._batches, strict=True):
            whole = size * self.world_size
            order = part.start + generator.permutation(len(part))
            batches: list[npt.NDArray[np.int64]] = []
            for start in range(0, len(part), self.pool_batches * whole):
                indices = order[start : start + self.pool_batches * whole]
                indices = indices[np.argsort(self.lengths[indices], kind="stable")]
                batches += [indices[cut : cut + whole] for cut in range(0, len(indices), whole)]
            shuffled += [batches[i] for i in generator.permutation(count)]  # only the last can be smaller, or too many
        shares = (batch[: len(batch) - len(batch) % self.world_size] for batch in shuffled)
        return [share[self.rank :: self.world_size].tolist() for share in shares]


class EvaluationBatchSampler(_BatchSampler):
    """Evaluation batches: every sample exactly once over all ranks, always in the same order.

    A rank takes every `world_size`-th sample of the length-sorted order. All ranks have the same number of batches, so
    that a collective operation per batch cannot hang; their sizes differ by at most one, and the largest is
    `batch_size` (one more only if a rank has fewer samples than another has batches).

    Args:
        lengths: (samples,) length of each sample.
        batch_size: largest batch.
        rank: Rank of this process.
        world_size: number of processes.
        sort: by length, for little padding; if False, the samples keep their order.
    """

    def __init__(
        self,
        lengths: npt.ArrayLike,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        sort: bool = True,
    ) -> None:
        """Counts the batches. Raises ValueError if there are fewer samples than processes."""
        super().__init__(lengths, batch_size, rank=rank, world_size=world_size, shuffle=False)
        samples = len(self.lengths)
        if samples < world_size:
            raise InputError(f"asked to evaluate on {world_size} processes, got {samples} samples; use fewer processes")
        self.sort = sort
        largest_share, smallest_share = -(-samples // world_size), samples // world_size
        self._batches = min(-(-largest_share // batch_size), smallest_share)

    def __len__(self) -> int:
        """Number of batches."""
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        """Iterates over the batches."""
        order = np.argsort(self.lengths, kind="stable") if self.sort else np.arange(len(self.lengths))
        for batch in np.array_split(order[self.rank :: self.world_size], self._batches):
            yield batch.tolist()
