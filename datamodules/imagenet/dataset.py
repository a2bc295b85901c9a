"""Batches of decoded and cropped images as bytes, from files by index or from a stream."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from datamodules.batching import LengthBucketBatchSampler
from datamodules.imagenet.decode import decode, to_rgb
from datamodules.imagenet.seeding import seeded
from datamodules.loader import Loader, worker_options

Transform = Callable[[Image.Image], Tensor]
_SEEDS = 2**31


class ImageBytes(NamedTuple):
    """One batch of a loader.

    Attributes:
        x: (B, 3, H, W) uint8.
        y: (B,) int64 classes.
        sample_index: (B,) int64 row of each image in its split.
        seed: Seed of the random erasing and mixing that follow; 0 for evaluation.
    """

    x: Tensor
    y: Tensor
    sample_index: Tensor
    seed: int


class ImageFiles(Dataset[Any]):
    """Batches of images, indexed by a list of `image + number of images * seed of its augmentation`.

    Args:
        reader: of `readers.open_map`.
        transform: (RGB image) -> (3, H, W) uint8.
        classes: for each class of the reader, its number in the training data; None for the same number.
        rows: images of the reader that belong to this split; None for all.
    """

    def __init__(
        self,
        reader: Any,
        transform: Transform,
        *,
        classes: npt.NDArray[np.int64] | None = None,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Selects the rows; reads nothing."""
        self.reader, self.transform, self.classes = reader, transform, classes
        self.rows = np.arange(len(reader)) if rows is None else rows
        # In shared memory, since the loader's processes find the damaged files.
        self._damaged = torch.zeros(len(self.rows), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def __getitem__(self, keys: int | list[int]) -> ImageBytes:
        """Loads the images of a list of keys."""
        seeds, images = np.divmod(np.atleast_1d(keys), len(self))
        pairs = [self._load(int(image), int(seed)) for image, seed in zip(images, seeds, strict=True)]
        x, y = torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])
        return ImageBytes(x, y, torch.from_numpy(images), int(seeds[0]))

    def damaged(self) -> list[str]:
        """Names of the damaged files that this process and its workers have read so far."""
        return [self.reader.filename(int(self.rows[image])) for image in self._damaged.nonzero()[:, 0]]

    @property
    def count_damaged(self) -> int:
        """Number of damaged files so far."""
        return int(self._damaged.count_nonzero())

    def first_damage(self) -> str:
        """Name of the first damaged file, and its damage."""
        row = int(self.rows[int(self._damaged.nonzero()[0, 0])])
        return f"{self.reader.filename(row)}: {decode(self._read(row)[0])[1]}"

    def _read(self, row: int) -> tuple[bytes, int]:
        file, y = self.reader[row]
        with file:
            return file.read(), y

    def _load(self, image: int, seed: int) -> tuple[Tensor, int]:
        row = int(self.rows[image])
        content, y = self._read(row)
        picture, reason = decode(content)
        if reason is not None and not self._damaged[image]:
            self._damaged[image] = True
            warnings.warn(f"{self.reader.filename(row)} is damaged: {reason}", stacklevel=2)
        with seeded(seed):
            return self.transform(picture), int(y if self.classes is None else self.classes[y])


class ImageSampler(LengthBucketBatchSampler):
    """Training batches, each image with a seed for its augmentation, as a pure function of (seed, epoch).

    The batch of all processes together is the same for every number of them. Images that do not fill a batch are left
    out of that epoch. With `repeats` (repeated augmentation, Hoffer et al. 2020), a batch has that many differently
    augmented copies of each image, spread over the processes, and an epoch uses 1 / `repeats` of the images.

    Args:
        images: in the split.
        batch_size: images per process.
        repeats: copies of an image.
        seed: of order and augmentation, together with the epoch.
        rank: Rank of this process.
        world_size: number of processes.
    """

    def __init__(
        self, images: int, batch_size: int, *, repeats: int = 1, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """Counts the batches. Raises ValueError if there is none for each process."""
        super().__init__(np.ones(images), batch_size, seed=seed, rank=rank, world_size=world_size, drop_last=True)
        self.repeats = repeats

    def _order(self) -> list[list[int]]:
        images = len(self.lengths)
        generator = np.random.default_rng([self.seed, self.epoch])
        order = np.repeat(generator.permutation(images), self.repeats)
        shape = (len(self), self.batch_size, self.world_size)
        keys = order[: np.prod(shape)] + images * generator.integers(1, _SEEDS, size=np.prod(shape))
        return [batch.tolist() for batch in keys.reshape(shape)[:, :, self.rank]]


class ImageStream(IterableDataset[Any]):
    """Images of a stream for evaluation, each once over all processes.

    Each process reads the whole stream, divided over its workers, and keeps every `world_size`-th image. It has no
    length, since the number of batches of the workers is not known in advance. An image's row (`sample_index`) is
    unique, but depends on the number of workers.

    Args:
        reader: of `readers.open_stream`.
        transform: (RGB image) -> (3, H, W) uint8.
        rank: Rank of this process.
        world_size: number of processes.
    """

    def __init__(self, reader: Any, transform: Transform, rank: int, world_size: int) -> None:
        """Makes the reader return the whole stream to every process."""
        self.reader, self.transform, self.rank, self.world_size = reader, transform, rank, world_size
        reader.dist_rank, reader.dist_num_replicas = 0, 1  # timm's own division repeats some images and omits others

    def __iter__(self) -> Iterator[tuple[Tensor, int, int, int]]:
        """Iterates over image, class, row and seed 0."""
        worker = get_worker_info()
        assert worker is not None  # StreamLoader has at least one
        for number, (picture, y) in enumerate(self.reader):
            if number % self.world_size == self.rank:
                yield self.transform(to_rgb(picture)), y, number * worker.num_workers + worker.id, 0


class TrainingStream(IterableDataset[Any]):
    """Images of a stream for training; timm divides the shards among processes and workers.

    Every process has the same number of batches. If shards are unequal or do not divide evenly, some images occur more
    than once in an epoch, and others not at all.

    Args:
        reader: of `readers.open_stream`.
        transform: (RGB image) -> (3, H, W) uint8.
        seed: Seed of the augmentation, together with epoch, process, worker and position.
        rank: Rank of this process.
    """

    def __init__(self, reader: Any, transform: Transform, seed: int, rank: int) -> None:
        """Starts at epoch 0."""
        self.reader, self.transform, self.seed, self.rank, self.epoch = reader, transform, seed, rank, 0

    def __len__(self) -> int:
        """Number of images of all processes, as timm counts them."""
        return len(self.reader)

    def __iter__(self) -> Iterator[tuple[Tensor, int, int, int]]:
        """Iterates over augmented image, class, row and seed."""
        worker = get_worker_info()
        assert worker is not None  # StreamLoader has at least one
        for number, (picture, y) in enumerate(self.reader):
            key = np.random.SeedSequence([self.seed, self.epoch, self.rank, worker.id, number])
            seed = 1 + int(key.generate_state(1)[0]) % (_SEEDS - 1)
            with seeded(seed):
                yield self.transform(to_rgb(picture)), y, number * worker.num_workers + worker.id, seed


class StreamLoader(Loader):
    """Loader of a stream whose order is a function of (seed, epoch, processes, workers).

    Its workers start again in each epoch, from a seed of that epoch. A run resumed within an epoch repeats the epoch's
    first batches; at the end of an epoch, it resumes exactly.

    Args:
        dataset: the stream.
        batch_size: Batch size of this process.
        num_workers: at least one is used.
        seed: Seed of the order.
        epoch: returns the current epoch.
    """

    def __init__(
        self,
        dataset: ImageStream | TrainingStream,
        batch_size: int,
        *,
        num_workers: int,
        seed: int,
        epoch: Callable[[], int],
    ) -> None:
        """Creates the loader and passes its number of workers to the reader."""
        super().__init__(
            dataset,
            batch_size=batch_size,
            collate_fn=_collate,
            **worker_options(max(1, num_workers)),
        )
        self._key, self._epoch = (seed, dataset.rank), epoch
        dataset.reader.set_loader_cfg(num_workers=self.num_workers)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Iterates over the batches of an epoch."""
        # A generator: the epoch is read at the first batch, since Lightning calls iter() early.
        epoch = self._epoch()
        stream = self.dataset
        if isinstance(stream, TrainingStream):
            stream.epoch = epoch
            stream.reader.set_epoch(epoch)
        [seed] = np.random.SeedSequence([*self._key, epoch]).generate_state(1)
        self.generator.manual_seed(int(seed))
        yield from super().__iter__()


def _collate(items: list[tuple[Tensor, int, int, int]]) -> ImageBytes:
    images, classes, samples, seeds = zip(*items, strict=True)
    return ImageBytes(torch.stack(images), torch.tensor(classes), torch.tensor(samples), seeds[0])
