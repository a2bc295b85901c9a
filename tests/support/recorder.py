"""A training that learns nothing and notes what each step sees, to compare a resumed one with the whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import Batch


class Recorder(LightningModule):
    """Notes `note(batch)` at each step."""

    def __init__(self, note: Callable[[Batch], Any]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.note, self.seen = note, list[Any]()

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen.append(self.note(batch))
        return self.weight * batch.x.double().mean()

    def validation_step(self, batch: Batch) -> None: ...

    def predict_step(self, batch: Batch) -> torch.Tensor:
        return batch.y

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def quiet_trainer(**options: Any) -> Trainer:
    """On a CPU, without logs and bars."""
    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, **options)


def steps_after_each_checkpoint(
    folder: Path, data: Callable[[], LightningDataModule], note: Callable[[Batch], Any]
) -> tuple[list[Any], dict[int, list[Any]]]:
    """Trains two epochs; returns what the steps saw, and what those of trainings resumed after each step saw."""
    whole = Recorder(note)
    saver = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    quiet_trainer(max_epochs=2, callbacks=[saver]).fit(whole, datamodule=data())
    resumed = {}
    for done in range(1, len(whole.seen)):
        rest = Recorder(note)
        trainer = quiet_trainer(max_epochs=2, enable_checkpointing=False)
        trainer.fit(rest, datamodule=data(), ckpt_path=folder / f"step={done}.ckpt")
        resumed[done] = rest.seen
    return whole.seen, resumed
