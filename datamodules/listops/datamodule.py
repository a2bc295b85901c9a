"""ListOps for Lightning: generated in Long Range Arena's distribution, or read from its official files."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from datamodules.base import Batch, EvaluationBatchSampler, LengthBucketBatchSampler, collate_tokens
from datamodules.errors import InputError
from datamodules.listops import official, store
from datamodules.listops.expressions import PAD, Expressions
from datamodules.listops.generator import GENERATOR_VERSION, TreeParameters, generate_arrays
from datamodules.listops.predict_file import read_expressions
from datamodules.listops.statistics import root_operator_accuracy, shared_between_splits
from datamodules.loader import WORKER_TIMEOUT, ResumableLoader

_PIN_MEMORY = torch.cuda.is_available()


class ExpressionDataset(Dataset[Batch]):
    """Whole batches of expressions: indexed by a list of indices, as the batch samplers yield them."""

    def __init__(self, expressions: Expressions) -> None:
        self.expressions = expressions

    def __len__(self) -> int:
        return self.expressions.samples

    def __getitem__(self, indices: int | list[int]) -> Batch:
        chosen = np.atleast_1d(indices)
        batch = collate_tokens([self.expressions.row(i) for i in chosen], self.expressions.labels[chosen], PAD)
        return batch._replace(sample=torch.from_numpy(chosen))


class ListOpsDataModule(LightningDataModule):
    """ListOps (Nangia & Bowman 2018) as in Long Range Arena (Tay et al. 2021).

    Batches are `Batch(x, y, lengths, sample)` with x (B, L) int64 token ids padded with 0, y (B,) int64 values 0..9.

    Args:
        root: folder for data sets; this one is kept in `<root>/listops`.
        batch_size: training samples per step, over all processes.
        min_length: expressions are longer than this; length counts 2 per operator and 1 per digit.
        max_length: expressions are shorter than this.
        max_depth: of the trees.
        max_args: most arguments of an operator.
        train_size: generated training samples; val and test do not depend on it.
        val_size: generated validation samples.
        test_size: generated test samples.
        data_seed: of the generated data.
        tsv_dir: folder with the official `basic_{train,val,test}.tsv`, used instead of generated data.
        num_workers: loader processes.
        predict_file: text file for predict, one expression per line, with or without parentheses.
        shuffle_seed: the order of training batches is a function of it and of the epoch.
        eval_batch_size: samples per step of validate, test and predict; default `batch_size`.

    Raises:
        ValueError: for sizes below 1 or lengths that no tree can have.
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
    ) -> None:
        super().__init__()
        self.parameters = TreeParameters(min_length, max_length, max_depth, max_args)
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        if min(batch_size, eval_batch_size, *self.sizes.values()) < 1 or num_workers < 0:
            raise InputError(
                f"asked for batch_size={batch_size}, eval_batch_size={eval_batch_size}, sizes {self.sizes}, "
                f"num_workers={num_workers}; sizes must be at least 1, num_workers at least 0"
            )
        self.root, self.tsv_dir, self.predict_file = root, tsv_dir, predict_file
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.data_seed, self.shuffle_seed, self.num_workers = data_seed, shuffle_seed, num_workers
        self._splits: dict[str, Expressions] = {}
        self._meta: dict[str, Any] = {}

    def prepare_data(self) -> None:
        """Builds the data set on disk unless it is there; nothing is needed to predict."""
        if self._predicting:
            return
        about = self._about()
        store.build(self._folder(about), self._read if self.tsv_dir else self._generate, about)

    def setup(self, stage: str) -> None:
        """Memory-maps the data set."""
        if stage == "predict":
            self._splits["predict"] = read_expressions(self.predict_file)
        elif not self._meta:
            splits, self._meta = store.load(self._folder(self._about()))
            self._splits.update(splits)

    def train_dataloader(self) -> DataLoader[Batch]:
        lengths = self._split("train").lengths
        rank, world_size = self._shard
        if self.batch_size % world_size:
            raise InputError(
                f"batch_size={self.batch_size} cannot be shared evenly by {world_size} processes; "
                "choose another --trainer.devices or --data.batch_size"
            )
        sampler = LengthBucketBatchSampler(
            lengths, self.batch_size // world_size, seed=self.shuffle_seed, rank=rank, world_size=world_size
        )
        return ResumableLoader(
            ExpressionDataset(self._split("train")),
            sampler,
            num_workers=self.num_workers,
            pin_memory=_PIN_MEMORY,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """In the order of `predict_file`."""
        return self._evaluation_loader("predict", sort=False)

    @property
    def digest(self) -> str:
        """sha256 of the contents of all splits."""
        self._split("train")
        return str(self._meta["digest"])

    def describe(self) -> dict[str, Any]:
        """Counts, lengths, digest, and the accuracy of knowing nothing but the root operator."""
        train, test = self._split("train"), self._split("test")
        return {
            "counts": dict(self._meta["counts"]),
            "mean_length": {split: float(self._split(split).lengths.mean()) for split in store.SPLITS},
            "digest": self.digest,
            "root_operator_accuracy": root_operator_accuracy(train, test),
        }

    @property
    def _predicting(self) -> bool:
        return self.trainer is not None and self.trainer.state.fn == TrainerFn.PREDICTING

    @property
    def _shard(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _about(self) -> dict[str, Any]:
        if self.tsv_dir:
            return {"source": "official", "sha256": official.source_digest(self.tsv_dir)}
        return {
            "source": "generated",
            "version": GENERATOR_VERSION,
            "seed": self.data_seed,
            **vars(self.parameters),
            "sizes": self.sizes,
        }

    def _folder(self, about: dict[str, Any]) -> Path:
        key = sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        return Path(self.root) / "listops" / f"{about['source']}-{key}"

    def _generate(self) -> dict[str, Expressions]:
        total = sum(self.sizes.values())
        data = generate_arrays(total, seed=self.data_seed, **vars(self.parameters), progress=True)
        splits, start = {}, 0
        for split in ("test", "val", "train"):  # train last: its size then leaves the others as they are
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
            raise RuntimeError(f"asked for the {name} data, got none; call prepare_data() and setup() first")
        return self._splits[name]

    def _evaluation_loader(self, split: str, sort: bool = True) -> DataLoader[Batch]:
        rank, world_size = self._shard
        sampler = EvaluationBatchSampler(
            self._split(split).lengths, self.eval_batch_size, rank=rank, world_size=world_size, sort=sort
        )
        return DataLoader(
            ExpressionDataset(self._split(split)),
            batch_size=None,  # the sampler makes the batches
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            timeout=WORKER_TIMEOUT if self.num_workers else 0,
            pin_memory=_PIN_MEMORY,
        )
