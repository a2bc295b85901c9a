"""The ListOps data module: generated in Long Range Arena's distribution, or read from its official files."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from datamodules.base import SPLITS, DataModule, not_set_up
from datamodules.batching import Batch, LengthBucketBatchSampler, collate_tokens
from datamodules.listops import official, store
from datamodules.listops.expressions import PAD, Expressions, concatenate
from datamodules.listops.generator import GENERATOR_VERSION, TreeParameters, generate_arrays
from datamodules.listops.predict_file import read_expressions
from datamodules.listops.statistics import root_operator_accuracy, shared_between_splits
from msssm.errors import InputError
from msssm.paths import local_path


class ExpressionDataset(Dataset[Batch]):
    """Batches of expressions, indexed by a list of indices, as the batch samplers yield them."""

    def __init__(self, expressions: Expressions) -> None:
        """Wraps expressions."""
        self.expressions = expressions

    def __len__(self) -> int:
        """Number of expressions."""
        return self.expressions.samples

    def __getitem__(self, indices: int | list[int]) -> Batch:
        """Pads the expressions of a list of indices into a batch."""
        chosen = np.atleast_1d(indices)
        batch = collate_tokens([self.expressions.row(i) for i in chosen], self.expressions.labels[chosen], PAD)
        return batch._replace(sample_index=torch.from_numpy(chosen))


class ListOpsDataModule(DataModule):
    """ListOps (Nangia & Bowman 2018) as in Long Range Arena (Tay et al. 2021).

    Batches are `Batch(x, y, lengths, sample_index)`, x (B, L) int64 token ids padded with 0, y (B,) int64 values 0..9.

    Args:
        root: folder of data sets; this one is stored in `<root>/listops`.
        batch_size: training samples per step, over all processes.
        min_length: expressions are longer than this; length counts 2 per operator and 1 per digit.
        max_length: expressions are shorter than this.
        max_depth: Largest depth of the trees.
        max_args: most arguments of an operator.
        train_size: generated training samples; does not affect val and test.
        val_size: generated validation samples.
        test_size: generated test samples.
        data_seed: Seed of the generated data.
        tsv_dir: folder with the official `basic_{train,val,test}.tsv`, used instead of generated data.
        num_workers: loader processes.
        predict_file: text file for predict, one expression per line, with or without parentheses.
        shuffle_seed: the order of training batches is a function of it and of the epoch.
        eval_batch_size: samples per step of validate, test and predict; default `batch_size`.
        short_size: further generated training samples, shorter than `short_max_length` (and longer than an eighth of
            it), with which every epoch begins: what is learned from them carries over to long ones.
        short_max_length: of those; at most `min_length`, so that none can be in the validation or test.
        short_batch_size: short samples per step, over all processes; default `batch_size`.
    """

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 50,
        min_length: int = 500,
        max_length: int = 2000,
        max_depth: int = 10,
        max_args: int = 10,
        train_size: int = 96_000,
        val_size: int = 2_000,
        test_size: int = 2_000,
        data_seed: int = 0,
        tsv_dir: str | None = None,
        num_workers: int = 0,
        predict_file: str | None = None,
        shuffle_seed: int = 0,
        eval_batch_size: int | None = None,
        short_size: int = 0,
        short_max_length: int = 128,
        short_batch_size: int | None = None,
    ) -> None:
        """Checks the options. Raises ValueError for sizes below 1, or lengths that no tree can have."""
        super().__init__(batch_size, eval_batch_size, num_workers, shuffle_seed)
        self.parameters = TreeParameters(min_length, max_length, max_depth, max_args)
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        if min(self.sizes.values()) < 1:
            raise InputError(f"asked for {self.sizes} samples; sizes must be at least 1")
        if short_size < 0 or (short_size and short_max_length > min_length):
            raise InputError(
                f"asked for {short_size} short expressions of less than {short_max_length} tokens, with "
                f"min_length={min_length}; give a short_size of at least 0, a short_max_length of at most min_length"
            )
        if short_batch_size is not None and short_batch_size < 1:
            raise InputError(f"asked for short_batch_size={short_batch_size}; it must be at least 1")
        self.short_size, self.short_batch_size = short_size, short_batch_size
        if short_size:
            self.short = TreeParameters(short_max_length // 8, short_max_length, max_depth, max_args)
        self.root, self.data_seed = local_path(root), data_seed
        self.tsv_dir = None if tsv_dir is None else local_path(tsv_dir)
        self.predict_file = None if predict_file is None else local_path(predict_file)
        self._splits: dict[str, Expressions] = {}
        self._meta: dict[str, Any] = {}

    def prepare_data(self) -> None:
        """Builds the data set on disk if it is not there; predicting needs none."""
        if self._predicting:
            return
        about = self._about()
        store.build(self._folder(about), self._make, about)

    def setup(self, stage: str) -> None:
        """Memory-maps the data set."""
        if stage == "predict":
            self._splits["predict"] = read_expressions(self.predict_file)
        elif not self._meta:
            splits, self._meta = store.load(self._folder(self._about()))
            self._splits.update(splits)

    def split(self, name: str) -> ExpressionDataset:
        """The expressions of a split."""
        return ExpressionDataset(self._split(name))

    def lengths(self, split: str) -> npt.ArrayLike:
        """Number of tokens of each expression of a split."""
        return self._split(split).lengths

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The expressions of `predict_file`, in its order."""
        return self.evaluation_loader("predict", sort=False)

    @property
    def digest(self) -> str:
        """sha256 of the contents of all splits."""
        self._split("train")
        return str(self._meta["digest"])

    def counts(self) -> dict[str, int]:
        """Samples of each split, short ones apart."""
        counts = super().counts()
        counts["train"] -= self.short_size
        return counts | ({"short": self.short_size} if self.short_size else {})

    def training_sampler(self, batch_size: int, rank: int, world_size: int) -> LengthBucketBatchSampler:
        """Training batches, those of short expressions first."""
        return LengthBucketBatchSampler(
            self.lengths("train"),
            batch_size,
            seed=self.shuffle_seed,
            rank=rank,
            world_size=world_size,
            first=self.short_size,
            first_batch_size=self.share_of(self.short_batch_size or self.batch_size),
        )

    def describe(self) -> dict[str, Any]:
        """Counts, mean lengths, digest, and the accuracy that the root operator alone gives."""
        splits = {split: self._split(split) for split in SPLITS}
        splits["train"] = splits["train"].rows(self.short_size, splits["train"].samples)
        return {
            **super().describe(),
            "mean_length": {split: float(each.lengths.mean()) for split, each in splits.items()},
            "root_operator_accuracy": root_operator_accuracy(splits["train"], splits["test"]),
        }

    @property
    def _predicting(self) -> bool:
        return self.trainer is not None and self.trainer.state.fn == TrainerFn.PREDICTING

    def _about(self) -> dict[str, Any]:
        if self.tsv_dir:
            about: dict[str, Any] = {"source": "official", "sha256": official.source_digest(self.tsv_dir)}
        else:
            about = {"source": "generated", **self._origin, **vars(self.parameters), "sizes": self.sizes}
        if self.short_size:
            about["short"] = {**self._origin, **vars(self.short), "size": self.short_size}
        return about

    @property
    def _origin(self) -> dict[str, Any]:
        return {"version": GENERATOR_VERSION, "seed": self.data_seed}

    def _folder(self, about: dict[str, Any]) -> Path:
        key = sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        return self.root / "listops" / f"{about['source']}-{key}"

    def _make(self) -> dict[str, Expressions]:
        splits = self._read() if self.tsv_dir else self._generate()
        if self.short_size:
            short = generate_arrays(self.short_size, seed=self.data_seed, **vars(self.short), progress=True)
            splits["train"] = concatenate([short, splits["train"]])
        return splits

    def _generate(self) -> dict[str, Expressions]:
        total = sum(self.sizes.values())
        data = generate_arrays(total, seed=self.data_seed, **vars(self.parameters), progress=True)
        splits, start = {}, 0
        for split in ("test", "val", "train"):  # train last, so that its size does not affect the others
            splits[split] = data.rows(start, start + self.sizes[split])
            start += self.sizes[split]
        return splits

    def _read(self) -> dict[str, Expressions]:
        assert self.tsv_dir is not None
        splits = official.read_all(self.tsv_dir)
        if shared := shared_between_splits(splits):
            rank_zero_warn(f"{self.tsv_dir}: {shared} expressions occur in more than one split; they are kept")
        return splits

    def _split(self, name: str) -> Expressions:
        if name not in self._splits:
            raise not_set_up(f"the {name} data")
        return self._splits[name]
