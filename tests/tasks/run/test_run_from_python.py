"""A run from Python: a plain Trainer with everything that the command's trainings have, and a Trainer without it."""

import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from datamodules import ListOpsDataModule
from msssm import Backbone, MultiScaleSSM
from msssm.errors import InputError
from tasks import ListOpsTask, Run
from tasks.base import warmup_cosine
from tests.support.recipes import fit, write_recipe


def parts(tmp_path: Path, seed: int = 0) -> tuple[ListOpsTask, ListOpsDataModule]:
    lightning.seed_everything(seed)
    backbone = Backbone(lambda d: MultiScaleSSM(d, 1, 2, 2), 8, 1, dropout=0.1)
    sizes = {"train_size": 60, "val_size": 20, "test_size": 20, "min_length": 3, "max_length": 12, "max_args": 3}
    data = ListOpsDataModule(root=str(tmp_path / "data"), batch_size=20, eval_batch_size=20, **sizes)  # type: ignore[arg-type]
    return ListOpsTask(backbone, lr=0.01), data


QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


def test_a_run_in_three_lines_is_complete_and_not_repeated(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    trainer = run.trainer(max_epochs=2, **QUIET)
    metrics = run.fit(trainer, *parts(tmp_path), seed=0)
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert (metrics["seed"], metrics["steps"], metrics["data"]["counts"]["train"]) == (0, 6, 60)
    assert {"commit", "versions", "hardware"} <= metrics.keys()
    assert {"best.ckpt", "last.ckpt"} <= {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    again = Run(tmp_path / "run")
    with pytest.raises(InputError, match="holds a complete run"):
        again.fit(again.trainer(max_epochs=2, **QUIET), *parts(tmp_path))


def test_a_run_that_failed_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = (Run(tmp_path / name) for name in ("whole", "cut"))
    expected = whole.fit(whole.trainer(max_epochs=3, **QUIET), *parts(tmp_path))
    step = ListOpsTask.training_step

    def killed(self: ListOpsTask, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 7:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(ListOpsTask, "training_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            cut.fit(cut.trainer(max_epochs=3, **QUIET), *parts(tmp_path))
    again = Run(tmp_path / "cut")
    # Another seed: the weights and random numbers are the checkpoint's.
    found = again.fit(again.trainer(max_epochs=3, **QUIET), *parts(tmp_path, seed=1))
    assert (found["test"], found["steps"]) == (expected["test"], expected["steps"])
    one, other = (torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(x, other["state_dict"][name]) for name, x in one["state_dict"].items())


def test_a_plain_trainer_loads_what_it_wrote(tmp_path: Path) -> None:
    """Checkpoints hold plain values and tensors alone, whoever writes them."""
    task, data = parts(tmp_path)
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, log_every_n_steps=0, logger=False, **QUIET)
    trainer.fit(task, datamodule=data)
    [before] = trainer.test(datamodule=data, ckpt_path="best", verbose=False)
    path = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"]["lr"] == 0.01
    fresh, _ = parts(tmp_path, seed=1)
    loaded = ListOpsTask.load_from_checkpoint(path, backbone=fresh.model.backbone)
    [after] = Trainer(logger=False, **QUIET).test(loaded, datamodule=data, verbose=False)
    assert after == before
    Trainer(max_epochs=2, logger=False, enable_checkpointing=False, **QUIET).fit(fresh, datamodule=data, ckpt_path=path)


def test_the_command_and_python_share_a_folder(tmp_path: Path) -> None:
    fit(write_recipe(tmp_path, max_epochs=1))
    run = Run(tmp_path / "runs/seed0")
    with pytest.raises(InputError, match="holds a complete run"):
        run.claim()


class Rates(lightning.pytorch.Callback):
    """Keeps the learning rate of every step, as a share of the peak."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"] / pl_module.lr)


def test_the_schedule_knows_that_later_epochs_accumulate_more(tmp_path: Path) -> None:
    """Two epochs of 3 steps, then two of 2: the cosine of 10 steps, or of 8 where `max_steps` says so."""
    options = {**QUIET, "logger": False, "use_distributed_sampler": False, "default_root_dir": tmp_path}
    schedule = [GradientAccumulationScheduler({2: 2})]
    for most, steps in ((-1, 10), (8, 8)):
        rates = Rates()
        task, data = parts(tmp_path)
        task.warmup_epochs = 1
        Trainer(max_epochs=4, max_steps=most, callbacks=[*schedule, rates], **options).fit(task, data)
        assert rates.seen == pytest.approx([warmup_cosine(step, 3, steps) for step in range(steps)])
