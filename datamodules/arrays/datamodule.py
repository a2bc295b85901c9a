"""The data module of one's own sequences: split, cropped, augmented, padded, and checked before the first step."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from datamodules.arrays import source as sources
from datamodules.arrays.augmentation import Augmentation
from datamodules.arrays.files import Array, Sequences, predict_files
from datamodules.arrays.moments import Moments
from datamodules.arrays.source import Source, Target
from datamodules.arrays.synthetic import synthetic_signals
from datamodules.base import SPLITS, DataModule, not_set_up
from datamodules.batching import Batch, LengthBucketBatchSampler
from msssm.errors import InputError
from msssm.paths import local_path

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
NO_LABEL = -1  # of steps in the padding


class ArrayDataset(Dataset[Batch]):
    """Whole batches: indexed by a list of `sequence + number of sequences * (epoch + 1)`, without the epoch unchanged.

    Args:
        sequences: all of them.
        rows: (n,) sequences of this split.
        labels: (n, ...) labels of this split, or the labels of the steps of all sequences.
        lengths: (n,) longest piece of each sequence that is returned, at random with an epoch, else of the middle.
        augment: of sequences with an epoch.
        seed: of crops and augmentation, together with epoch and sequence.
    """

    def __init__(
        self,
        sequences: Sequences,
        rows: Ints,
        labels: Array | Sequences,
        lengths: Ints,
        augment: Augmentation,
        seed: int,
    ) -> None:
        """Stores the arrays."""
        self.sequences, self.rows, self.labels, self.lengths = sequences, rows, labels, lengths
        self.augment, self.seed = augment, seed

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.rows)

    def __getitem__(self, keys: int | list[int]) -> Batch:
        """Pads the sequences of a list of keys into a batch."""
        epochs, chosen = np.divmod(np.atleast_1d(keys), len(self))
        pairs = [self._load(int(index), int(epoch) - 1) for index, epoch in zip(chosen, epochs, strict=True)]
        lengths = np.array([len(x) for x, _ in pairs], dtype=np.int64)
        x = np.zeros((len(pairs), lengths.max(), pairs[0][0].shape[1]), dtype=np.float32)
        steps = np.full(x.shape[:2], NO_LABEL, dtype=np.int64)
        for row, (signal, labels) in enumerate(pairs):
            x[row, : len(signal)], steps[row, : len(labels)] = signal, labels
        y = steps if isinstance(self.labels, Sequences) else self.labels[chosen]
        return Batch(*map(torch.from_numpy, (x, y, lengths, chosen)))

    def _load(self, index: int, epoch: int) -> tuple[Floats, Ints]:
        """Crops and, in training, augments a sequence (L, C) and its steps' labels (L,); epoch -1 is evaluation."""
        row, length = int(self.rows[index]), int(self.lengths[index])
        x = self.sequences[row]
        random = None
        if epoch >= 0:
            random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch, index])))
        room = len(x) - length
        start = room // 2 if random is None else int(random.integers(room + 1))
        piece = slice(start, start + length)
        signal, steps = np.array(x[piece], dtype=np.float32), np.zeros(0, dtype=np.int64)
        if isinstance(self.labels, Sequences):
            steps = np.array(self.labels.array(row)[piece], dtype=np.int64)
        return (signal, steps) if random is None else self.augment(signal, steps, random)


class EpochSampler(LengthBucketBatchSampler):
    """Training batches in which every index carries the epoch, as `ArrayDataset` reads it."""

    def _order(self) -> list[list[int]]:
        offset = len(self.lengths) * (self.epoch + 1)
        return [[index + offset for index in batch] for batch in super()._order()]


class ArrayDataModule(DataModule):
    """Anyone's own sequences: a folder of `.npy` files with a table, or arrays by `from_arrays`.

    Batches are `Batch`: x (B, L, C) float32, as it is in the files and padded to the longest; y of the target. Files
    are read one at a time. `setup` reads each once, and refuses what cannot be trained on. Mean and scale of the
    channels, of the training sequences, are for the task, which standardises and keeps them in its checkpoint.

    Attributes:
        channels: C.
        outputs: Outputs of a head: classes, or columns of labels.
        names: Names of the outputs.
        mean: (C,) mean of the channels; 0 without `standardize`.
        scale: (C,) standard deviation of the channels; 1 without `standardize` and for a channel that is constant.
        target_mean: (K,) of the values of a regression.
        target_scale: (K,) likewise.

    Args:
        root: folder of the table and the files; by default synthetic example data are generated.
        table: CSV in `root`, whose column `file` names a `.npy` of floats (L, C) or (L,), relative to `root`.
        labels: columns of the labels; default `label`.
        target: "class" (one column of any values, whose classes are sorted), "labels" (columns of 0 and 1, of which
            several may hold), "regression" (columns of numbers), "step" (a column of `.npy` files (L,), the class of
            each step as an integer from 0 on).
        split_column: column of train, val or test; by default the split is random.
        group_column: column of what must stay in one split, such as a patient; fractions then count groups.
        val_fraction: part of a random split for validation.
        test_fraction: part of a random split for test.
        data_seed: Seed of the random split and of the example data.
        crop: longest piece of a sequence in training, drawn anew in each epoch; by default all of it.
        evaluation: "whole" sequences, padded, or the "center" of length `crop`.
        standardize: whether the task standardises the channels.
        shift: augmentation: rotation in time by up to this many steps.
        scaling: augmentation: factor of the deviations from the mean, 1 - scaling to 1 + scaling.
        noise: augmentation: standard deviation of white noise, in units of each channel's scale.
        mask: augmentation: longest stretch of steps that is replaced by the mean.
        drop: augmentation: probability with which each channel is replaced by its mean.
        predict_file: a `.npy` file to predict, or a folder of them, in the order of their names.
        batch_size: training sequences per step, over all processes.
        eval_batch_size: sequences per step of validate, test and predict; default `batch_size`.
        num_workers: loader processes.
        shuffle_seed: order, crops and augmentation are a function of it, of the epoch and of the sequence.
    """

    def __init__(
        self,
        root: str | None = None,
        table: str = "labels.csv",
        labels: list[str] | None = None,
        target: Target = "class",
        split_column: str | None = None,
        group_column: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        data_seed: int = 0,
        crop: int | None = None,
        evaluation: Literal["whole", "center"] = "whole",
        standardize: bool = True,
        shift: int = 0,
        scaling: float = 0.0,
        noise: float = 0.0,
        mask: int = 0,
        drop: float = 0.0,
        predict_file: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        shuffle_seed: int = 0,
    ) -> None:
        """Checks the options. Raises ValueError for those that contradict each other or are out of range."""
        super().__init__(batch_size, eval_batch_size, num_workers, shuffle_seed)
        one = target in ("class", "step")
        if target not in get_args(Target) or (labels is not None and (not labels or (one and len(labels) > 1))):
            raise InputError(
                f"asked for target={target!r}, labels={labels}; choose one of {', '.join(get_args(Target))}, with one "
                "column for class and step"
            )
        if min(val_fraction, test_fraction) <= 0 or val_fraction + test_fraction >= 1 or data_seed < 0:
            raise InputError(
                f"asked for val_fraction={val_fraction}, test_fraction={test_fraction}, data_seed={data_seed}; the "
                "fractions are above 0 and below 1 together, the seed at least 0"
            )
        if evaluation not in ("whole", "center") or (crop is None and evaluation == "center") or (crop or 1) < 1:
            raise InputError(
                f"asked for crop={crop}, evaluation={evaluation!r}; crop is at least 1, and evaluation 'whole', or "
                "'center' with a crop"
            )
        if root is None and (labels or split_column or group_column):
            raise InputError(
                f"asked for labels={labels}, split_column={split_column}, group_column={group_column}, got no table; "
                "name its folder as root"
            )
        self.root = None if root is None else local_path(root)
        self.table, self.labels, self.target = table, labels, target
        self.split_column, self.group_column = split_column, group_column
        self.fractions, self.data_seed = (val_fraction, test_fraction), data_seed
        self.crop, self.evaluation, self.standardize = crop, evaluation, standardize
        self.augmentation = Augmentation(shift, scaling, noise, mask, drop)
        self.predict_file = None if predict_file is None else local_path(predict_file)
        self.synthetic = False
        self.channels, self.outputs = 0, 0
        self.names: list[str] = []
        self._source: Source | None = None
        self._splits: dict[str, ArrayDataset] = {}

    @classmethod
    def from_arrays(
        cls,
        sequences: Sequence[Array] | Array,
        labels: Sequence[Any] | Array,
        splits: Sequence[str] | Array | None = None,
        groups: Sequence[Any] | Array | None = None,
        columns: list[str] | None = None,
        **options: Any,
    ) -> "ArrayDataModule":
        """Makes a data module of arrays in place of files.

        Args:
            sequences: N arrays (L, C) or (L,), or one array (N, L, C) or (N, L); memory maps stay on disk.
            labels: (N,) values for "class", (N,) or (N, K) numbers for "labels" and "regression", N arrays (L,) for
                "step".
            splits: (N,) train, val or test.
            groups: (N,) of which none is in two splits.
            columns: Names of the K labels.
            options: those of the class, but for its folder and table.
        """
        data = cls(**options)
        data._source = sources.from_arrays(sequences, labels, data.target, columns, splits, groups)
        return data

    def setup(self, stage: str) -> None:
        """Reads and checks the data once, and splits them; for predict, nothing but the files to predict."""
        if stage == "predict":
            sequences = predict_files(self.predict_file)
            shapes = np.array([x.shape for x in sequences.checked()])
            self.channels, rows = int(shapes[0, 1]), np.arange(len(shapes))
            self._splits["predict"] = self._split("predict", sequences, rows, np.zeros_like(rows), shapes[:, 0])
        elif "train" not in self._splits:
            self._load()

    def _load(self) -> None:
        if self._source is None:
            self._source = self._read()
        sequences = self._source.sequences
        rows = sources.split_rows(self._source, *self.fractions, self.data_seed)
        digest = sha256()
        lengths = self._scan(sequences, set(rows["train"].tolist()), digest)
        labels, self.names = sources.encode(self._source, self.target, rows, lengths)
        self.outputs = len(self.names)
        moments = Moments()
        if self.target == "regression" and isinstance(labels, np.ndarray):
            moments.add(labels[rows["train"]])
        self.target_mean, self.target_scale = moments.result(self.outputs)
        for part in labels.stored() if isinstance(labels, Sequences) else [labels]:
            digest.update(np.ascontiguousarray(part).data)
        for name, chosen in rows.items():
            own = labels if isinstance(labels, Sequences) else labels[chosen]
            self._splits[name] = self._split(name, sequences, chosen, own, lengths[chosen])
        digest.update(repr((self.names, {name: chosen.tolist() for name, chosen in rows.items()})).encode())
        self._digest = digest.hexdigest()

    def _read(self) -> Source:
        if self.root is None:
            self.synthetic = True
            rank_zero_warn("no root is given: synthetic example data are trained on; name your own by data.root")
            return synthetic_signals(self.target, self.data_seed)
        columns = self.labels or ["label"]
        return sources.read_folder(self.root, self.table, self.target, columns, self.split_column, self.group_column)

    def _scan(self, sequences: Sequences, training: set[int], digest: Any) -> Ints:
        """Reads every sequence once, for the digest and the moments of the channels; returns the lengths (N,)."""
        lengths, moments = [], Moments()
        for index, x in enumerate(sequences.checked()):
            lengths.append(len(x))
            digest.update(f"{x.shape};".encode())
            digest.update(np.ascontiguousarray(x).data)
            if index in training and self.standardize:
                moments.add(x)
        self.channels = x.shape[1]
        self.mean, self.scale = moments.result(self.channels)
        return np.array(lengths, dtype=np.int64)

    def _split(
        self, name: str, sequences: Sequences, rows: Ints, labels: Array | Sequences, lengths: Ints
    ) -> ArrayDataset:
        if self.crop is not None and (name == "train" or self.evaluation == "center"):
            lengths = np.minimum(lengths, self.crop)
        augment = replace(self.augmentation, mean=self.mean, scale=self.scale) if name == "train" else Augmentation()
        return ArrayDataset(sequences, rows, labels, lengths, augment, self.shuffle_seed)

    def split(self, name: str) -> ArrayDataset:
        """The sequences of a split."""
        if name not in self._splits:
            raise not_set_up(f"the {name} data")
        return self._splits[name]

    def lengths(self, split: str) -> npt.ArrayLike:
        """Steps of each sequence of a split, as they are loaded."""
        return self.split(split).lengths

    def training_sampler(self, batch_size: int, rank: int, world_size: int) -> EpochSampler:
        """Training batches of one process, each sequence with its epoch."""
        lengths = self.lengths("train")
        return EpochSampler(lengths, batch_size, seed=self.shuffle_seed, rank=rank, world_size=world_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The sequences of `predict_file`, in its order."""
        return self.evaluation_loader("predict", sort=False)

    def groups(self, split: str) -> Ints | None:
        """(n,) number of the group of each sequence of a split; None without groups."""
        rows = self.split(split).rows
        if self._source is None or self._source.groups is None:
            return None
        return np.unique(self._source.groups.astype(str), return_inverse=True)[1][rows].astype(np.int64)

    @property
    def digest(self) -> str:
        """sha256 of sequences, labels and splits."""
        self.split("train")
        return self._digest

    def describe(self) -> dict[str, Any]:
        """Counts, digest, target, outputs, channels, lengths, and whether the data are synthetic."""
        return {
            **super().describe(),
            "target": self.target,
            "names": self.names,
            "channels": self.channels,
            "mean_length": {name: float(self.split(name).lengths.mean()) for name in SPLITS},
            "synthetic": self.synthetic,
        }
