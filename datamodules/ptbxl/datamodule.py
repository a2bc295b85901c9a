"""PTB-XL for Lightning: converted once, standardised by its training folds, in whole records or crops."""

from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import DataModule, not_set_up
from datamodules.batching import LengthBucketBatchSampler
from datamodules.disk import locked
from datamodules.ptbxl import convert, files
from datamodules.ptbxl.download import download
from datamodules.ptbxl.labels import LABEL_SETS, class_names, multi_hot
from datamodules.ptbxl.record import MISSING, SECONDS, UNITS_PER_MILLIVOLT, Signal
from datamodules.ptbxl.synthetic import GENERATOR_VERSION, MIN_RECORDS, generate
from datamodules.ptbxl.windows import window_starts
from msssm.errors import InputError
from msssm.paths import local_path

_FOLDS = {"train": files.TRAIN_FOLDS, "val": (files.VAL_FOLD,), "test": (files.TEST_FOLD,)}

Ints = npt.NDArray[np.int64]


class ECGBatch(NamedTuple):
    """B records of W windows each; W = len(x) // len(y) is 1 for whole records and for training crops.

    Attributes:
        x: (B * W, L, 12) float32, standardised; the windows of a record follow each other.
        y: (B, K) float32 multi-hot labels.
        lengths: (B * W,) int64, all L.
        sample_index: (B,) int64 row of each record in `PTBXLDataModule.records(split)`.
    """

    x: Tensor
    y: Tensor
    lengths: Tensor
    sample_index: Tensor


class ECGDataset(Dataset[Any]):
    """Whole batches of records: indexed by a list of `record + number of records * offset of the crop`.

    Args:
        signals: (all records, L, 12) int16 memory map.
        rows: (records,) rows of `signals` in this split.
        labels: (records, K) multi-hot.
        mean: Mean of the training samples, in mV.
        std: likewise.
        window: samples per window; L for whole records.
        starts: Starts of the windows of a record, relative to the offset.
    """

    def __init__(
        self,
        signals: Signal,
        rows: Ints,
        labels: npt.NDArray[np.float32],
        *,
        mean: float,
        std: float,
        window: int,
        starts: list[int],
    ) -> None:
        """Stores the arrays."""
        self.signals, self.rows, self.labels = signals, rows, labels
        self.mean, self.std, self.window, self.starts = mean, std, window, starts

    def __len__(self) -> int:
        """Number of records."""
        return len(self.rows)

    def __getitem__(self, indices: int | list[int]) -> ECGBatch:
        """Standardised windows of the records of a list of keys."""
        offsets, records = np.divmod(np.atleast_1d(indices), len(self))
        x = np.empty((len(records) * len(self.starts), self.window, self.signals.shape[2]), dtype=np.float32)
        windows = [
            (row, offset + start)
            for row, offset in zip(self.rows[records], offsets, strict=True)
            for start in self.starts
        ]
        for target, (row, start) in zip(x, windows, strict=True):
            samples = self.signals[row, start : start + self.window]
            np.multiply(samples, 1 / (UNITS_PER_MILLIVOLT * self.std), out=target, dtype=np.float32)
            target -= self.mean / self.std
            if samples.min() == MISSING:
                target[samples == MISSING] = 0.0  # the mean
        lengths = torch.full((len(x),), self.window, dtype=torch.int64)
        return ECGBatch(torch.from_numpy(x), torch.from_numpy(self.labels[records]), lengths, torch.from_numpy(records))


class CropSampler(LengthBucketBatchSampler):
    """Training batches of records with one random crop each, a pure function of (seed, epoch).

    Args:
        samples: records.
        batch_size: records per batch and rank.
        offsets: crops start at 0..offsets-1.
        seed: of order and crops, together with the epoch.
        rank: Rank of this process.
        world_size: number of processes.
    """

    def __init__(
        self, samples: int, batch_size: int, offsets: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """Counts the batches. Raises ValueError if there is none for each rank."""
        super().__init__(np.ones(samples), batch_size, seed=seed, rank=rank, world_size=world_size)
        self.offsets = offsets

    def _order(self) -> list[list[int]]:
        samples = len(self.lengths)
        offset = np.random.default_rng([self.seed, self.epoch, 1]).integers(self.offsets, size=samples)
        return [[index + samples * int(offset[index]) for index in batch] for batch in super()._order()]


class PTBXLDataModule(DataModule):
    """PTB-XL (Wagner et al. 2020): 12 leads of 10 s, folds 1-8 for training, 9 for validation, 10 for test.

    Batches are `ECGBatch`. Samples are standardised by the mean and the standard deviation, two numbers, of all
    training samples; both travel with the checkpoint, as do the names of the classes. Records without a class of the
    label set are dropped, and `describe()` counts them.

    Args:
        root: folder for data sets; PTB-XL is read from `<root>/ptbxl`, and its conversion is kept there.
        source: folder or zip of the data set, if it is elsewhere; a folder is only read.
        download: release to fetch from PhysioNet into `<root>/ptbxl`, "1.0.3" or "1.0.1"; by default none.
        synthetic: generate this many records below `<root>/ptbxl-synthetic` and take them instead; at least 200.
        synthetic_seed: Seed of the generated records.
        label_set: all (71 classes), diagnostic (44), subdiagnostic (23), superdiagnostic (5), form (19), rhythm (12).
        sampling_rate: 100 or 500 Hz.
        likelihood: diagnostic statements count from this likelihood on (percent); by default at any.
        batch_size: training records per step, over all processes.
        eval_batch_size: records per step of validate and test; default `batch_size`.
        crop: samples of a window; training takes one at random, evaluation all. By default whole records.
        stride: from window to window in evaluation, in samples; default half a crop.
        max_corrupt: tolerate at most this many records in quarantine.
        num_workers: loader processes.
        shuffle_seed: the order of training batches and the crops are a function of it and of the epoch.
    """

    def __init__(
        self,
        root: str = "data",
        source: str | None = None,
        download: str | None = None,
        synthetic: int | None = None,
        synthetic_seed: int = 0,
        label_set: str = "all",
        sampling_rate: int = 100,
        likelihood: float | None = None,
        batch_size: int = 50,
        eval_batch_size: int | None = None,
        crop: int | None = None,
        stride: int | None = None,
        max_corrupt: int = 0,
        num_workers: int = 0,
        shuffle_seed: int = 0,
    ) -> None:
        """Checks the options. Raises ValueError for those that contradict each other or are out of range."""
        super().__init__(batch_size, eval_batch_size, num_workers, shuffle_seed)
        if label_set not in LABEL_SETS or sampling_rate not in files.FILENAME:
            raise InputError(
                f"asked for label_set={label_set!r}, sampling_rate={sampling_rate}; "
                f"choose one of {', '.join(LABEL_SETS)}, and 100 or 500 Hz"
            )
        samples = SECONDS * sampling_rate
        if (crop is not None and not 1 <= crop <= samples) or (stride is not None and (crop is None or stride < 1)):
            raise InputError(
                f"asked for crop={crop}, stride={stride}; a crop is 1 to {samples} samples at {sampling_rate} Hz, "
                "and a stride of at least 1 goes with a crop"
            )
        if synthetic is not None and (synthetic < MIN_RECORDS or synthetic_seed < 0 or source or download):
            raise InputError(
                f"asked for synthetic={synthetic}, synthetic_seed={synthetic_seed}, source={source}, "
                f"download={download}; generate at least {MIN_RECORDS} records with a seed of at least 0, and name no "
                "other data"
            )
        if max_corrupt < 0:
            raise InputError(f"asked for max_corrupt={max_corrupt}; it must be at least 0")
        self.synthetic, self.synthetic_seed = synthetic, synthetic_seed
        made = f"ptbxl-synthetic/{synthetic}-seed{synthetic_seed}-{sampling_rate}hz-v{GENERATOR_VERSION}/"
        self.folder = local_path(root) / (made if synthetic else "") / "ptbxl"
        self.source, self.download = None if source is None else local_path(source), download
        self.label_set, self.sampling_rate, self.likelihood = label_set, sampling_rate, likelihood
        self.max_corrupt = max_corrupt
        self.window = samples if crop is None else crop
        self.crop, self.stride = crop, stride or max(1, self.window // 2)
        self.starts = window_starts(samples, self.window, self.stride)
        self.mean, self.std = 0.0, 0.0
        self.classes: list[str] = []
        self.descriptions: dict[str, str] = {}
        self._converted: convert.Converted | None = None
        self._restored: dict[str, Any] | None = None

    def prepare_data(self) -> None:
        """Downloads, unpacks or generates the data if requested, and converts it if that has not been done."""
        self._generate()
        if self.download is not None:
            download(self.folder, self.sampling_rate, self.download)
        if self._archive is not None:
            files.unpack(self._archive, self.folder, self.sampling_rate)
        source = self._located
        convert.convert(source, self.folder, self.sampling_rate, files.read_database(source))

    def setup(self, stage: str) -> None:
        """Memory-maps the signals, makes the labels, fits mean and standard deviation on the training folds."""
        if self._converted is not None:
            return
        source = self._located
        table, statements = files.read_database(source), files.read_statements(source)
        converted = convert.load(convert.location(source, self.folder, self.sampling_rate))
        self._check_quarantine(converted)
        labels = multi_hot(table["scp_codes"].tolist(), self.label_set, statements, self.likelihood)
        corrupt = table.index.isin([entry["ecg_id"] for entry in converted.quarantine])
        labelled = labels.any(axis=1)
        self.classes = class_names(self.label_set, statements)
        self.descriptions = {name: str(statements["description"].get(name, name)) for name in self.classes}
        self.dropped = int((~labelled & ~corrupt).sum())
        self.generated = (source / files.SYNTHETIC).is_file()
        self._labels, self._table = labels, table
        folds = table["strat_fold"]
        self._rows = {name: np.flatnonzero(labelled & ~corrupt & folds.isin(fold)) for name, fold in _FOLDS.items()}
        if empty := [name for name, rows in self._rows.items() if len(rows) == 0]:
            raise InputError(
                f"asked for {self.label_set} labels of {source}, got no record of the {', '.join(empty)} folds that "
                "has one; choose another label_set, or lower likelihood"
            )
        self._converted = converted
        self.mean, self.std = _moments(converted.signals, self._rows["train"])
        if self._restored is not None:
            self.load_state_dict(self._restored)

    def state_dict(self) -> dict[str, Any]:
        """Mean, standard deviation, classes and sampling rate, for the checkpoint."""
        return {
            "mean": self.mean,
            "std": self.std,
            "classes": self.classes,
            "sampling_rate": self.sampling_rate,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes mean and standard deviation from a checkpoint.

        Raises:
            ValueError: if it was trained for other classes or another sampling rate.
        """
        if self._converted is None:
            self._restored = state
            return
        if state["classes"] != self.classes or state["sampling_rate"] != self.sampling_rate:
            raise InputError(
                f"the checkpoint is for {len(state['classes'])} classes at {state['sampling_rate']} Hz, the data "
                f"has the {len(self.classes)} of {self.label_set} at {self.sampling_rate} Hz; choose the label_set and "
                "sampling_rate that it was trained with"
            )
        self.mean, self.std = state["mean"], state["std"]

    def split(self, name: str) -> ECGDataset:
        """The records of a split: whole or, in training, for crops."""
        signals, rows = self._need().signals, self._rows[name]
        return ECGDataset(
            signals,
            rows,
            self._labels[rows],
            mean=self.mean,
            std=self.std,
            window=self.window,
            starts=[0] if name == "train" else self.starts,
        )

    def training_sampler(self, batch_size: int, rank: int, world_size: int) -> CropSampler:
        """Training batches of one process, with a random crop of each record."""
        offsets = SECONDS * self.sampling_rate - self.window + 1
        records = len(self.split("train"))
        return CropSampler(records, batch_size, offsets, seed=self.shuffle_seed, rank=rank, world_size=world_size)

    def records(self, split: str) -> pd.DataFrame:
        """ecg_id and patient_id of the records of "train", "val" or "test", in the order of `ECGBatch.sample_index`."""
        self._need()
        return self._table[["patient_id"]].iloc[self._rows[split]].reset_index()

    @property
    def digest(self) -> str:
        """sha256 of the signals, the labels and their folds."""
        signals = self._need().meta["digest"]
        folds = self._table["strat_fold"].to_numpy(dtype=np.int64)
        return sha256(signals.encode() + self._labels.tobytes() + folds.tobytes()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Counts, digest, standardisation, and whether the data is generated."""
        converted = self._need()
        missing, flat, saturated = converted.meta["missing_flat_saturated_leads"]
        return {
            **super().describe(),
            "dropped_without_label": self.dropped,
            "quarantined": len(converted.quarantine),
            "leads": {"with_missing_samples": missing, "flat": flat, "saturated": saturated},
            "positives": {
                name: dict(zip(self.classes, self._labels[rows].sum(axis=0, dtype=np.int64).tolist(), strict=True))
                for name, rows in self._rows.items()
            },
            "label_set": self.label_set,
            "mean": self.mean,
            "std": self.std,
            "synthetic": self.generated,
        }

    def _generate(self) -> None:
        if self.synthetic is None or self.folder.is_dir():
            return
        with locked(self.folder.parent):
            if not self.folder.is_dir():  # another process may have made it meanwhile
                rates, root = (self.sampling_rate,), self.folder.parent
                generate(root, self.synthetic, seed=self.synthetic_seed, sampling_rates=rates, progress=True)

    @property
    def _archive(self) -> Path | None:
        return self.source if self.source is not None and not self.source.is_dir() else None

    @property
    def _located(self) -> Path:
        return files.find(self.folder if self.source is None or self._archive is not None else self.source)

    def _need(self) -> convert.Converted:
        if self._converted is None:
            raise not_set_up("PTB-XL")
        return self._converted

    def _check_quarantine(self, converted: convert.Converted) -> None:
        if not (bad := converted.quarantine):
            return
        found = (
            f"{len(bad)} of {len(converted.signals)} records of PTB-XL are corrupt, {bad[0]['record']} for one: "
            f"{bad[0]['reason']}; all are listed in {converted.folder / 'meta.json'}"
        )
        if len(bad) > self.max_corrupt:
            raise InputError(
                f"{found}. Replace them (what is good by then is taken), or go on without them: "
                f"--data.max_corrupt {len(bad)}"
            )
        rank_zero_warn(f"{found}. They are left out")


def _moments(signals: Signal, rows: Ints) -> tuple[float, float]:
    """Mean and standard deviation (mV) over records, samples and leads; missing samples do not count."""
    count, total, squares = 0, 0, 0
    for start in range(0, len(rows), convert.CHUNK):
        samples = signals[rows[start : start + convert.CHUNK]]
        there = samples != MISSING
        values = np.where(there, samples, 0).astype(np.int64)
        count += int(there.sum())
        total += int(values.sum())
        squares += int((values * values).sum())  # exact: integers
    mean = total / count
    std = float(np.sqrt(squares / count - mean**2))
    return mean / UNITS_PER_MILLIVOLT, std / UNITS_PER_MILLIVOLT
