"""Batches of decoded and cropped images as bytes, by index."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.batching import LengthBucketBatchSampler
from datamodules.images.readers import class_names, decode, seeded

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

    They are `rows` of timm's reader. `numbers` are those of the classes by name, empty for those of the reader.
    """

    def __init__(self, reader: Any, rows: npt.NDArray[np.int64], transform: Transform, numbers: dict[str, int]) -> None:
        """Selects the rows; reads nothing."""
        self.reader, self.rows, self.transform = reader, rows, transform
        self.numbers = [numbers.get(name, -1) for name in class_names(reader)]
        # In shared memory, since the loader's processes find the damaged files.
        self._damaged = torch.zeros(len(rows), dtype=torch.bool).share_memory_()

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

    def _load(self, image: int, seed: int) -> tuple[Tensor, int]:
        row = int(self.rows[image])
        file, y = self.reader[row]
        with file:
            picture, reason = decode(file.read())
        if reason is not None and not self._damaged[image]:
            self._damaged[image] = True
            warnings.warn(f"{self.reader.filename(row)} is damaged: {reason}", stacklevel=2)
        with seeded(seed):
            return self.transform(picture), self.numbers[y] if self.numbers else int(y)


class ImageSampler(LengthBucketBatchSampler):
    """Training batches, each image with a seed for its augmentation, as a pure function of (seed, epoch).

    The batch of all processes together is the same for every number of them. Images that do not fill a batch are left
    out of that epoch. With `repeats` (repeated augmentation, Hoffer et al. 2020), a batch has that many differently
    augmented copies of each image, spread over the processes, and an epoch uses 1 / `repeats` of the images.
    """

    def __init__(self, images: int, batch_size: int, *, repeats: int = 1, **options: int) -> None:
        """Counts the batches; `options` are the seed, the rank and the number of processes of the base class."""
        super().__init__(np.ones(images), batch_size, drop_last=True, **options)
        self.repeats = repeats

    def _order(self) -> list[list[int]]:
        images = len(self.lengths)
        generator = np.random.default_rng([self.seed, self.epoch])
        order = np.repeat(generator.permutation(images), self.repeats)
        shape = (len(self), self.batch_size, self.world_size)
        keys = order[: np.prod(shape)] + images * generator.integers(1, _SEEDS, size=np.prod(shape))
        return [batch.tolist() for batch in keys.reshape(shape)[:, :, self.rank]]
