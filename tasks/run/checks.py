"""Checks before the first step: of options that leave a training without a best checkpoint, or with a wrong record."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
)

from msssm.errors import InputError
from tasks.run.checkpoints import RunCheckpoint

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
_COUNTS = ("check_val_every_n_epoch", "accumulate_grad_batches")
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
        callbacks: Callbacks of the recipe.
        best: the command's own.
        metrics: Metrics of the task's validation, each with its best value, "min" or "max"; empty if unknown.

    Raises:
        InputError: a callback would write among the run's own checkpoints, wait for a metric that is never logged, or
            select the worst instead of the best.
    """
    folder = Path(str(best.dirpath))
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder / "more")
        if isinstance(callback, Checkpoint) and _is_folder(getattr(callback, "dirpath", None), folder):
            raise InputError(f"the callback {name} would write among best.ckpt and last.ckpt; give it another dirpath")
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
