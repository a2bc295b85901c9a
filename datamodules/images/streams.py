"""WebDataset shards, which timm reads in sequence, without access by index."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from datamodules.images.batches import SEEDS, ImageBytes, Transform
from datamodules.images.readers import check_end, seeded, to_rgb
from datamodules.loader import Loader, worker_options
from msssm.errors import InputError, MissingFileError


def open_stream(dataset: str, source: Path, split: str, *, batch_size: int, training: bool, seed: int) -> Any:
    """Opens timm's reader of WebDataset shards below `source`, which yields (image, class).

    `split` is a name in _info.json, or shards and their samples: "train-{0000..1023}.tar|1281167". Training shuffles
    shards and samples by the seed and the epoch, and fills whole batches in each worker.
    """
    from timm.data.readers.reader_factory import create_reader

    options = {"is_training": training, "batch_size": batch_size, "seed": seed}
    try:  # pictures as stored, since timm's conversion clips 16 bits
        reader = create_reader(dataset, root=str(source), split=split, input_img_mode="", **options)
    except (RuntimeError, KeyError) as error:
        raise InputError(f"cannot read {split!r} of {dataset} in {source}: {error}") from error
    for shard in _shards(reader):
        if not shard.is_file():
            raise MissingFileError(f"expected the shard {shard}, got no such file; name the folder of all as source")
        check_end(shard)
    return reader


def stream_digest(reader: Any) -> str:
    """sha256 of the names and sizes of the shards."""
    lines = [f"{shard.name} {shard.stat().st_size}\n" for shard in _shards(reader)]
    return sha256("".join(lines).encode()).hexdigest()


def _shards(reader: Any) -> list[Path]:
    return [Path(reader.root) / name for name in reader.split_info.filenames]


class ImageStream(IterableDataset[Any]):
    """Images of a stream, each with its class, its row, and the seed of its augmentation.

    In training, timm divides the shards among processes and workers, and every process has the same number of batches:
    if shards are unequal or do not divide evenly, some images occur more than once in an epoch, and others not at all.
    In evaluation, each process reads the whole stream, divided over its workers, and keeps every `world_size`-th image.
    A row is unique there, but depends on the number of workers.
    """

    def __init__(
        self, reader: Any, transform: Transform, *, training: bool, seed: int, rank: int, world_size: int
    ) -> None:
        """Starts at epoch 0."""
        self.reader, self.transform, self.training, self.epoch = reader, transform, training, 0
        self.seed, self.rank, self.world_size = seed, rank, world_size
        if not training:  # timm's own division repeats some images and omits others
            reader.dist_rank, reader.dist_num_replicas = 0, 1

    def __len__(self) -> int:
        """Number of training images of all processes, as timm counts them; evaluation does not know it in advance."""
        if not self.training:
            raise TypeError("a stream that is evaluated has no length")
        return len(self.reader)

    def __iter__(self) -> Iterator[tuple[Tensor, int, int, int]]:
        """Iterates over image, class, row and seed, which is 0 in evaluation."""
        worker = get_worker_info()
        assert worker is not None  # StreamLoader has at least one
        for number, (picture, y) in enumerate(self.reader):
            seed = 0
            if self.training:
                key = np.random.SeedSequence([self.seed, self.epoch, self.rank, worker.id, number])
                seed = 1 + int(key.generate_state(1)[0]) % (SEEDS - 1)
            elif number % self.world_size != self.rank:
                continue
            with seeded(seed):
                x = self.transform(to_rgb(picture))
            yield x, y, number * worker.num_workers + worker.id, seed


class StreamLoader(Loader):
    """Loader of a stream whose order is a function of (seed, epoch, processes, workers).

    Its workers start again in each epoch, from a seed of that epoch. A run resumed within an epoch repeats the epoch's
    first batches; at the end of an epoch, it resumes exactly. It has at least one worker.
    """

    def __init__(self, stream: ImageStream, batch_size: int, *, num_workers: int, epoch: Callable[[], int]) -> None:
        """Creates the loader and passes its number of workers to the reader."""
        super().__init__(stream, batch_size=batch_size, collate_fn=_collate, **worker_options(max(1, num_workers)))
        self._stream, self._epoch = stream, epoch
        stream.reader.set_loader_cfg(num_workers=self.num_workers)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Iterates over the batches of an epoch."""
        # A generator: the epoch is read at the first batch, since Lightning calls iter() early.
        stream, epoch = self._stream, self._epoch()
        if stream.training:
            stream.epoch = epoch
            stream.reader.set_epoch(epoch)
        [seed] = np.random.SeedSequence([stream.seed, stream.rank, epoch]).generate_state(1)
        self.generator.manual_seed(int(seed))
        yield from super().__iter__()


def _collate(items: list[tuple[Tensor, int, int, int]]) -> ImageBytes:
    images, classes, samples, seeds = zip(*items, strict=True)
    return ImageBytes(torch.stack(images), torch.tensor(classes), torch.tensor(samples), seeds[0])
