"""Checks before the first step: of options that leave a training without a best checkpoint, or with a wrong record."""

import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    Checkpoint,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.callbacks.spike import SpikeDetection
from lightning.pytorch.utilities import rank_zero_only

from msssm.errors import InputError
from tasks.messages import say
from tasks.run.checkpoints import RunCheckpoint, RunFolderCheckpoint

# Option, refused values, what it must be, and why.
_TRAINING = (
    ("enable_checkpointing", (False,), "true", "the test at the end is of the best checkpoint"),
    ("barebones", (True,), "false", "it leaves out the checkpoints and the validations that a run is selected by"),
    ("max_epochs", (0,), "at least 1, or -1", "nothing would be trained"),
    ("max_steps", (0,), "at least 1, or -1", "nothing would be trained"),
    ("limit_train_batches", (0,), "more than 0", "nothing would be trained"),
    ("limit_val_batches", (0,), "more than 0", "the best checkpoint is that of the best validation"),
    (
        "use_distributed_sampler",
        (True,),
        "false",
        "the data modules divide their samples among the processes themselves",
    ),
)
# Lightning divides by these.
_COUNTS = ("check_val_every_n_epoch", "accumulate_grad_batches", "log_every_n_steps")
_CHECKPOINT = (
    ("save_top_k", (0,), "at least 1, or -1", "the test at the end is of the best checkpoint"),
    ("monitor", (None,), "the name of a metric", "the best checkpoint is that of the best validation"),
    ("save_on_exception", (True,), "false", "it would take the place of the best; last.ckpt is kept anyway"),
    ("enable_version_counter", (True,), "false", "best.ckpt is one file; with save_top_k others are kept beside it"),
)
# Options for when the callback saves: it must be after a validation, which measures the weights.
_OCCASIONS = {
    "every_n_train_steps": (None, 0),
    "train_time_interval": (None,),
    "every_n_epochs": (None, 1),
    "save_on_train_epoch_end": (False,),
}
_FOUND = (
    "the run would be another one than config.yaml records, and search anew whenever it is resumed; search with msssm"
)
_CALLBACKS: dict[type[Callback], str] = {
    BatchSizeFinder: f"{_FOUND} sweep and give --data.batch_size",
    LearningRateFinder: f"{_FOUND} sweep and give --model.lr",
    BackboneFinetuning: "it freezes `backbone` of a task, and ours has it as `model.backbone`",
    SpikeDetection: "Lightning cannot load its state again; train/loss_spikes is counted in every run, and "
    "tasks.SkipBadBatches skips",
}


def check_trainer(trainer: Namespace, *, fit: bool = False, skip_test: bool = False) -> None:
    """Rejects trainer options without effect, and those with which a training cannot end in a recorded result.

    Raises:
        InputError: naming the option, its value, what it must be, and why.
    """
    if trainer.gradient_clip_val is not None and trainer.gradient_clip_val < 0:
        raise InputError(f"gradient_clip_val must be at least 0, got {trainer.gradient_clip_val}")
    _check_processes(trainer)
    if not fit:
        return
    for name in _COUNTS:
        if trainer[name] is not None and trainer[name] < 1:
            raise InputError(f"{name} must be at least 1, got {trainer[name]}: it counts to the next")
    every = trainer.val_check_interval
    if isinstance(every, int | float) and every <= 0:
        raise InputError(f"val_check_interval must be more than 0, got {every}: it is the distance of validations")
    if trainer.fast_dev_run:
        return
    for name, refused, wanted, why in _TRAINING:
        _refuse(name, trainer[name], refused, wanted, why)
    if trainer.overfit_batches:
        raise InputError(
            f"overfit_batches must be 0, got {trainer.overfit_batches}: every epoch draws other batches, so no two "
            "would see the same ones; give the data module a small training set instead"
        )
    if not skip_test:
        why = "there would be nothing to test; --skip_test true leaves the test out"
        _refuse("limit_test_batches", trainer.limit_test_batches, (0,), "more than 0", why)


def _check_processes(trainer: Namespace) -> None:
    """Limits the processes on a CPU, each of which loads torch and the data: a typing error could exhaust memory."""
    count, cores = str(trainer.devices), os.cpu_count() or 1
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.cuda.is_available())
    if on_cpu and count.isdecimal() and int(count) > 2 * cores:
        raise InputError(f"devices must be at most {2 * cores} on a CPU of {cores} cores, got {count} processes")


def check_checkpoint(checkpoint: Namespace) -> None:
    """Rejects options of `--checkpoint` with which best.ckpt would be missing, or not be the best validation.

    Raises:
        InputError: as `check_trainer`.
    """
    for name, refused, wanted, why in _CHECKPOINT:
        _refuse(name, checkpoint[name], refused, wanted, why)
    for name, accepted in _OCCASIONS.items():
        if checkpoint[name] not in accepted:
            raise InputError(
                f"{name} must be {'false' if accepted[0] is False else 'null'}, got {checkpoint[name]}: best.ckpt is "
                "written at every validation that is better than those before; for more checkpoints than that, add "
                "--trainer.callbacks+=ModelCheckpoint"
            )


def _refuse(name: str, value: Any, refused: tuple[Any, ...], wanted: str, why: str) -> None:
    # 0 == False, but they are different values of an option.
    if any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in refused):
        raise InputError(f"{name} must be {wanted}, got {value}: {why}")


def check_callbacks(callbacks: list[Callback], best: RunCheckpoint, metrics: Mapping[str, str]) -> None:
    """Checks the callbacks of a recipe and their monitors; a ModelCheckpoint without folder gets `checkpoints/more`.

    Args:
        callbacks: of the recipe.
        best: the command's own.
        metrics: of the task's validation, each with its best value, "min" or "max"; empty if unknown.

    Raises:
        InputError: a callback would change the run without a record in its recipe, write among the run's own
            checkpoints, wait for a metric that is never logged, or select the worst instead of the best.
    """
    folder = Path(str(best.dirpath))
    for callback in callbacks:
        name = type(callback).__name__
        for kind, why in _CALLBACKS.items():
            if isinstance(callback, kind):
                raise InputError(f"the callback {name} cannot be used: {why}")
        if isinstance(callback, StochasticWeightAveraging):
            rank_zero_only(say)(
                f"{name} averages after the last validation: best.ckpt, and the test, are of one model, and only "
                "last.ckpt holds the average. EMAWeightAveraging validates what it averages"
            )
        if isinstance(callback, RunFolderCheckpoint):
            raise InputError(f"the callback {name} is there already; its options are --checkpoint.*")
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder / "more")
        if isinstance(callback, Checkpoint) and _is_folder(getattr(callback, "dirpath", None), folder):
            raise InputError(f"the callback {name} would write among best.ckpt and last.ckpt; give it another dirpath")
    stateful = Counter(each.state_key for each in callbacks if type(each).state_dict is not Callback.state_dict)
    for key, count in stateful.items():
        if count > 1:
            raise InputError(
                f"{count} callbacks are {key}: a checkpoint could keep the state of one only; remove the others, or "
                "give them another monitor"
            )
    for callback in (best, *callbacks):
        if isinstance(callback, ModelCheckpoint | EarlyStopping) and callback.monitor is not None and metrics:
            _check_monitor(callback, callback is best, metrics)


def _is_folder(path: Any, folder: Path) -> bool:
    return path is not None and Path(str(path)).resolve() == folder.resolve()


def _check_monitor(callback: ModelCheckpoint | EarlyStopping, ours: bool, metrics: Mapping[str, str]) -> None:
    monitor, mode = str(callback.monitor), callback.mode
    of = "" if ours else f" of the callback {type(callback).__name__}"
    if monitor not in metrics and (ours or monitor.startswith("val/")):
        raise InputError(
            f"monitor='{monitor}'{of} is not what a validation of this task logs: {', '.join(sorted(metrics))}"
        )
    if mode != metrics.get(monitor, mode):
        best = "lowest" if metrics[monitor] == "min" else "highest"
        raise InputError(f"mode='{mode}'{of}: the best {monitor} is the {best}; give mode {metrics[monitor]}")


class FirstValidation(Callback):
    """Ends a run before its first step if it would finish before its first validation.

    Args:
        best: whose score tells of a validation in an earlier part of the run.
    """

    def __init__(self, best: RunCheckpoint) -> None:
        """Stores the callback."""
        self.best = best

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises InputError if no validation would run."""
        if trainer.fast_dev_run or self.best.best_model_score is not None:  # type: ignore[attr-defined]
            return
        if trainer.val_dataloaders is not None and sum(trainer.num_val_batches) == 0:
            raise InputError("no validation can run, since the validation set has no batch")
        if trainer.val_check_batch is None or math.isinf(trainer.num_training_batches):
            return  # by the clock, or at the end of data whose length nobody knows
        epochs, steps = _due(trainer)
        for name, limit, due in (("max_epochs", trainer.max_epochs, epochs), ("max_steps", trainer.max_steps, steps)):
            if limit not in (None, -1) and due > limit:
                raise InputError(
                    f"no validation would run: {name} is {limit}, and the first needs {due}; raise it, or lower "
                    "val_check_interval or check_val_every_n_epoch"
                )


def _due(trainer: pl.Trainer) -> tuple[int, int]:
    """Smallest `max_epochs` and `max_steps` with which another validation runs."""
    batches, every = int(trainer.num_training_batches), int(trainer.val_check_batch)  # type: ignore[arg-type]
    progress = trainer.fit_loop.epoch_loop.batch_progress
    done = progress.current.completed % batches  # of this epoch, by the run that is resumed
    if trainer.check_val_every_n_epoch is None:
        last = done + every - progress.total.completed % every  # its batch, counted from the start of this epoch
    else:
        epochs = -(trainer.current_epoch + 1) % trainer.check_val_every_n_epoch
        last = every if epochs else done + every - done % every
        if last > batches:
            epochs, last = trainer.check_val_every_n_epoch, every
        last += epochs * batches
    epochs, before = divmod(last - 1, batches)
    accumulated = trainer.accumulate_grad_batches
    steps = epochs * math.ceil(batches / accumulated) + before // accumulated - done // accumulated
    return trainer.current_epoch + epochs + 1, trainer.global_step + steps + 1
