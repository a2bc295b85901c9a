"""Losses of the first steps of every recipe, in float64 and plain torch: two blocks, few channels, few positions.

`python -m tests.support.golden` writes them to tests/golden_losses.json, after a change that is meant to change them.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, Trainer
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batching import Batch
from datamodules.ptbxl.datamodule import ECGBatch
from tasks import ECGTask, ImageTask, SignalTask, TokenTask
from tasks.base import SequenceTask
from tasks.table import files
from tasks.table.spec import read_table

FILE = Path(__file__).parents[1] / "golden_losses.json"
TRAINER = ("max_epochs", "max_steps", "gradient_clip_val", "accumulate_grad_batches")
STEPS, BATCHES, ROWS, LENGTH = 4, 3, 2, 9  # the fourth step is of a second epoch, where there is one


def recipes() -> dict[str, dict[str, Any]]:
    """Every recipe by its name, such as `listops`, and every row of a table, such as `quick/listops/mamba`."""
    complete = {name: yaml.safe_load(files.recipe_file(name).read_text()) for name in files.recipes()}
    read = {name: read_table(files.table_file(name)) for name in files.tables()}
    return complete | {f"{name}/{row}": table.recipe(row) for name, table in read.items() for row in table.rows}


def losses(recipe: dict[str, Any]) -> list[float]:
    """Of the first steps of a training by Lightning, with the recipe's task, optimiser, schedule and clipping."""
    recipe = OmegaConf.to_container(OmegaConf.create({"seed_everything": 0} | recipe), resolve=True)  # type: ignore[assignment]
    model = recipe["model"]
    backbone = model["init_args"]["backbone"]["init_args"]
    backbone["n_layers"] = min(2, backbone["n_layers"])
    backbone["d_model"] = 64 if backbone["d_model"] > 100 else backbone["d_model"]
    if "image_size" in model["init_args"]:
        model["init_args"]["image_size"] = 3 * model["init_args"]["patch_size"]
    first = First()
    with alike_everywhere():
        torch.manual_seed(recipe["seed_everything"])
        task: SequenceTask = create(model)
        Trainer(
            **{name: value for name, value in recipe["trainer"].items() if name in TRAINER},
            accelerator="cpu",
            callbacks=[first],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(task, datamodule=Few(task, recipe["data"]["init_args"]["batch_size"]))
    return first.losses


class First(Callback):
    """Keeps the losses of the first steps, and ends the training."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.losses.append(args[1]["loss"].item())
        trainer.should_stop = len(self.losses) == STEPS


def create(node: Any, name: str = "") -> Any:
    """What a part of a recipe stands for; a layer is built anew for every block."""
    if not isinstance(node, dict) or "class_path" not in node:
        return node
    module, _, kind = node["class_path"].rpartition(".")
    options = {key: create(value, key) for key, value in node.get("init_args", {}).items()}
    made = partial(getattr(import_module(module), kind), **options)
    return made if name == "layer" else made()


class Few(LightningDataModule):
    """Uniform tokens, images or signals, with labels, in batches that are said to be of the recipe's size."""

    def __init__(self, task: SequenceTask, batch_size: int) -> None:
        super().__init__()
        self.task, self.batch_size = task, batch_size

    def train_dataloader(self) -> DataLoader[Batch | ECGBatch]:
        generator = np.random.default_rng(0)
        return DataLoader([self._batch(generator) for _ in range(BATCHES)], batch_size=None)  # type: ignore[arg-type]

    def _batch(self, generator: np.random.Generator) -> Batch | ECGBatch:
        task, lengths = self.task, torch.tensor([LENGTH, LENGTH // 2])
        classes = task.model.head.out_features  # type: ignore[union-attr]
        if isinstance(task, ECGTask):
            y = torch.tensor(generator.integers(2, size=(ROWS, classes))).double()
            return ECGBatch(torch.tensor(generator.random((ROWS, LENGTH, 12))), y, lengths, lengths)
        y = torch.tensor(generator.integers(classes, size=ROWS))
        if isinstance(task, ImageTask):
            return Batch(torch.tensor(generator.random((ROWS, *task.image_shape))), y, lengths)
        if isinstance(task, SignalTask):
            return Batch(torch.tensor(generator.random((ROWS, LENGTH, task.channels))), y, lengths)
        assert isinstance(task, TokenTask)
        return Batch(torch.tensor(generator.integers(1, task.vocab_size, size=(ROWS, LENGTH))), y, lengths)


@contextmanager
def alike_everywhere() -> Iterator[None]:
    """What every processor computes alike but for rounding: in float32, random numbers differ from one to the other."""
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch("torch.nn.functional.dropout", dropout),
            mock.patch.object(Tensor, "float", Tensor.double),  # of half precision's logits before a loss
        ):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def dropout(x: Tensor, p: float, training: bool = True, inplace: bool = False) -> Tensor:
    """From uniform numbers; torch takes its own from another generator on processors of another maker."""
    return x * (torch.rand_like(x) >= p) / (1 - p) if training else x


if __name__ == "__main__":
    found = {name: losses(recipe) for name, recipe in recipes().items()}
    FILE.write_text(
        "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in found.items()) + "\n}\n"
    )
