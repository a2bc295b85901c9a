"""A run that is continued sees exactly the batches that it would have seen."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import Batch, ListOpsDataModule
from tests.support.recorder import Recorder, quiet_trainer

EPOCHS, BATCHES = 3, 4


def _note(batch: Batch) -> list[int]:
    return batch.x.sum(dim=1).tolist()


def _data(root: Path, **arguments: Any) -> ListOpsDataModule:
    limits = {"min_length": 10, "max_length": 64, "max_depth": 6, "max_args": 5}
    return ListOpsDataModule(
        root=str(root), batch_size=5, train_size=18, val_size=5, test_size=5, **limits, **arguments
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_every_checkpoint_continues_exactly(tmp_path: Path, num_workers: int) -> None:
    keep_all: dict[str, Any] = {"dirpath": tmp_path / "checkpoints", "save_top_k": -1}
    savers = [
        ModelCheckpoint(**keep_all, filename="step{step}", every_n_train_steps=1),
        ModelCheckpoint(**keep_all, filename="epoch{step}", save_on_train_epoch_end=True),
    ]
    whole = Recorder(_note)
    quiet_trainer(default_root_dir=tmp_path, max_epochs=EPOCHS, callbacks=savers).fit(
        whole, _data(tmp_path, num_workers=num_workers)
    )
    assert len(whole.seen) == EPOCHS * BATCHES
    epochs = [str(whole.seen[start : start + BATCHES]) for start in range(0, EPOCHS * BATCHES, BATCHES)]
    assert len(set(epochs)) == EPOCHS
    checkpoints = list((tmp_path / "checkpoints").glob("*.ckpt"))
    assert len(checkpoints) == EPOCHS * BATCHES + EPOCHS
    for path in checkpoints:
        done = int(path.stem.split("=")[1])
        rest = Recorder(_note)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*dataloader is not resumable")
            quiet_trainer(default_root_dir=tmp_path, max_epochs=EPOCHS, enable_checkpointing=False).fit(
                rest, _data(tmp_path, num_workers=num_workers), ckpt_path=path
            )
        assert rest.seen == whole.seen[done:], path.name


def test_prediction_needs_no_data_set_and_keeps_order(tmp_path: Path) -> None:
    file = tmp_path / "expressions.txt"
    file.write_text("[MAX 2 9 [MIN 4 7 ] 0 ]\n[MIN 2 9 ]\n7\n1\n3\n[SM 9 9 ]\n")
    trainer = quiet_trainer(default_root_dir=tmp_path, enable_checkpointing=False)
    predictions = trainer.predict(Recorder(_note), _data(tmp_path, predict_file=str(file)))
    assert torch.cat(predictions).tolist() == [9, 2, 7, 1, 3, 8]  # type: ignore[arg-type]
    assert not (tmp_path / "listops").exists()
