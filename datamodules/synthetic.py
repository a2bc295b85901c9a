"""Small data without a download: scikit-learn's digits as sequences of 64 pixels, and two generated tasks of tokens.

The tasks have no hierarchy; tokens are selected by their content.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from torch import Tensor

from datamodules.batching import Batch
from datamodules.images.pixels import Bytes, Ints, PixelDataModule, PixelDataset
from msssm.errors import InputError

Kind = Literal["copying", "counting"]
SIZES = {"train": 1_197, "val": 200, "test": 400}
LEVELS = 16  # a pixel is the number of black ones, 0..16, among 4 x 4
SPLIT_SEED = 42


def stratified_split(labels: Bytes, sizes: dict[str, int], seed: int) -> dict[str, Ints]:
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


def selective_copying(
    count: int, *, length: int, items: int, symbols: int, generator: np.random.Generator
) -> tuple[Bytes, Bytes]:
    """Generates selective copying (Gu & Dao 2023, section 4.1) with a single answer.

    A sequence is `items` symbols at random positions among blanks and, last, the question for one of them.

    Args:
        count: number of sequences.
        length: Length of a sequence, including the question.
        items: symbols to remember.
        symbols: number of different symbols.
        generator: of all random choices.

    Returns:
        tokens: (count, length): 0 for a blank, 1..symbols for a symbol, symbols + k for the question for the k-th.
        labels: (count,) the requested symbol, 0..symbols - 1.
    """
    places = np.sort(generator.random((count, length - 1)).argsort(axis=1)[:, :items], axis=1)
    said = generator.integers(symbols, size=(count, items))
    asked = generator.integers(items, size=(count, 1))
    tokens = np.zeros((count, length), dtype=np.uint8)
    np.put_along_axis(tokens, places, (said + 1).astype(np.uint8), axis=1)
    tokens[:, -1:] = symbols + 1 + asked
    return tokens, np.take_along_axis(said, asked, axis=1)[:, 0].astype(np.uint8)


def marked_counting(
    count: int, *, length: int, items: int, symbols: int, generator: np.random.Generator
) -> tuple[Bytes, Bytes]:
    """Generates random symbols, `items` of them after a mark; the label is the one marked most often, without ties.

    Arguments and results are those of `selective_copying`, but tokens are 0 for a mark and 1..symbols.
    """
    slots = length - items  # a symbol, or a mark and its symbol
    tokens, labels = np.zeros((0, length), dtype=np.uint8), np.zeros(0, dtype=np.uint8)
    while len(tokens) < count:
        said = generator.integers(symbols, size=(count, slots))
        marked = generator.random((count, slots)).argsort(axis=1) < items
        counts = ((said[..., None] == np.arange(symbols)) & marked[..., None]).sum(axis=1)
        drawn = np.zeros((count, length), dtype=np.uint8)
        np.put_along_axis(drawn, (1 + marked).cumsum(axis=1) - 1, (said + 1).astype(np.uint8), axis=1)
        clear = (counts == counts.max(axis=1, keepdims=True)).sum(axis=1) == 1
        tokens = np.concatenate([tokens, drawn[clear]])
        labels = np.concatenate([labels, counts[clear].argmax(axis=1).astype(np.uint8)])
    return tokens[:count], labels[:count]


GENERATORS: dict[Kind, Callable[..., tuple[Bytes, Bytes]]] = {
    "copying": selective_copying,
    "counting": marked_counting,
}


class SelectiveCopyingDataModule(PixelDataModule):
    """Tokens generated by `selective_copying` or `marked_counting` within a second; nothing is stored.

    Batches are `Batch(x (B, length) int64, y (B,), lengths, sample_index)`. Each split has its own stream of random
    numbers, a function of (kind, data_seed), so that its size affects no other split.

    Args:
        kind: "copying" or "counting".
        length: of every sequence.
        items: symbols to remember, or to count.
        symbols: number of different ones, and of classes.
        batch_size: training samples per step, over all processes.
        eval_batch_size: samples per step of validate and test; default `batch_size`.
        train_size: training samples.
        val_size: validation samples.
        test_size: test samples.
        data_seed: Seed of the sequences.
        num_workers: loader processes.
        shuffle_seed: the order of training batches is a function of it and of the epoch.
    """

    def __init__(
        self,
        kind: Kind = "copying",
        length: int = 64,
        items: int = 4,
        symbols: int = 8,
        batch_size: int = 50,
        eval_batch_size: int | None = None,
        train_size: int = 40_000,
        val_size: int = 2_000,
        test_size: int = 5_000,
        data_seed: int = 0,
        num_workers: int = 0,
        shuffle_seed: int = 0,
    ) -> None:
        """Checks the options. Raises ValueError for those out of range."""
        super().__init__(batch_size, eval_batch_size, num_workers, shuffle_seed)
        room = length - 1 if kind == "copying" else length // 2
        if kind not in GENERATORS or symbols < 2 or symbols + items > 255 or not 1 <= items <= room:
            raise InputError(
                f"asked for kind={kind!r}, length={length}, items={items}, symbols={symbols}; kind is "
                f"{' or '.join(GENERATORS)}, symbols at least 2, symbols + items at most 255, items 1 to {room} at "
                "this length"
            )
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        if min(self.sizes.values()) < 1 or data_seed < 0:
            raise InputError(f"sizes must be at least 1 and data_seed at least 0, got {self.sizes}, {data_seed}")
        self.kind, self.length, self.items, self.num_classes = kind, length, items, symbols
        self.vocab_size = 1 + symbols + (items if kind == "copying" else 0)
        self.data_seed = data_seed

    def load(self) -> dict[str, PixelDataset]:
        """Generates the splits."""
        splits = {}
        for number, (name, size) in enumerate(self.sizes.items()):
            seed = [list(GENERATORS).index(self.kind), self.data_seed, number]
            generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
            tokens, labels = GENERATORS[self.kind](
                size, length=self.length, items=self.items, symbols=self.num_classes, generator=generator
            )
            splits[name] = PixelDataset(tokens, labels, np.arange(size))
        return splits

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Converts tokens to int64."""
        return batch._replace(x=batch.x.long())
