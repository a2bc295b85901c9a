"""Two tasks without hierarchy: what counts is which tokens are chosen by their content, not how they nest."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from datamodules.batching import Batch
from datamodules.errors import InputError
from datamodules.pixels import PixelDataModule, PixelDataset

Bytes = npt.NDArray[np.uint8]
Kind = Literal["copying", "counting"]


def selective_copying(
    count: int, *, length: int, items: int, symbols: int, generator: np.random.Generator
) -> tuple[Bytes, Bytes]:
    """Selective copying (Gu & Dao 2023, Mamba, section 4.1) with one answer: `items` symbols at random positions of a
    sequence of blanks, and, last, the question which of them to say.

    Args:
        count: number of sequences.
        length: of a sequence, the question included.
        items: symbols to remember.
        symbols: number of different ones.
        generator: of all that is random.

    Returns:
        tokens: (count, length): 0 a blank, 1..symbols a symbol, symbols + k the question for the k-th, k = 1..items.
        labels: (count,) the symbol asked for, 0..symbols - 1.
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
    """Random symbols, `items` of them each behind a mark: which one is marked most often? There are no ties.

    Args and Returns are those of `selective_copying`, but tokens are 0 for a mark and 1..symbols, and labels the
    symbol that is most often marked.
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
    """Sequences of tokens made by `selective_copying` or `marked_counting`; nothing is stored, since it takes a second.

    Batches are `Batch(x (B, length) int64, y (B,), lengths, sample)`. Each split has a stream of random numbers of its
    own, a function of (kind, data_seed), so that its size changes no other split.

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
        data_seed: of the sequences.
        num_workers: loader processes.
        shuffle_seed: the order of training batches is a function of it and of the epoch.

    Raises:
        ValueError: an option out of its range.
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
        return batch._replace(x=batch.x.long())
