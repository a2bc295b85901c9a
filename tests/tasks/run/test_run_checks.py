"""What a run cannot end well with is refused before its first step; whatever else is kept, best.ckpt is the best."""

import inspect
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.loader import OUTLIVES, outlive_signals
from msssm.errors import InputError
from tasks import ListOpsTask
from tasks.run.checkpoint_io import DurableCheckpointIO, read_checkpoint
from tasks.run.checkpoints import RunCheckpoint, newest_readable
from tasks.run.checks import check_callbacks, check_checkpoint, check_trainer
from tasks.run.last_checkpoint import LastCheckpoint
from tests.support.recipes import fit, write_recipe

METRICS = {"val/loss": "min", "val/accuracy": "max"}
OURS = {"monitor": "val/accuracy", "mode": "max", "filename": "best", "enable_version_counter": False}


def defaults(cls: type, **given: Any) -> Namespace:
    values = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    return Namespace(**{**values, **given})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("enable_checkpointing", False),
        ("barebones", True),
        ("max_epochs", 0),
        ("max_steps", 0),
        ("limit_train_batches", 0),
        ("limit_train_batches", 0.0),
        ("limit_val_batches", 0.0),
        ("limit_test_batches", 0),
        ("use_distributed_sampler", True),
        ("overfit_batches", 2),
        ("overfit_batches", 0.1),
    ],
)
def test_a_training_without_an_end_that_counts_is_refused(option: str, value: Any) -> None:
    ours = {"use_distributed_sampler": False}
    check_trainer(defaults(Trainer, **ours), fit=True)
    given = defaults(Trainer, **{**ours, option: value})
    with pytest.raises(InputError, match=f"^{option} must be .*, got {value}: "):
        check_trainer(given, fit=True)
    check_trainer(given)  # no training
    check_trainer(defaults(Trainer, **{**ours, "fast_dev_run": True, option: value}), fit=True)


@pytest.mark.parametrize("fast_dev_run", [False, True])
@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("option", ["check_val_every_n_epoch", "accumulate_grad_batches", "val_check_interval"])
def test_an_interval_is_positive(option: str, value: int, fast_dev_run: bool) -> None:
    ours = {"use_distributed_sampler": False, "fast_dev_run": fast_dev_run}
    for accepted in (1, None):
        check_trainer(defaults(Trainer, **ours, **{option: accepted}), fit=True)
    with pytest.raises(InputError, match=f"^{option} must be .*, got {value}: "):
        check_trainer(defaults(Trainer, **ours, **{option: value}), fit=True)


def test_without_a_test_there_need_be_no_test_batch() -> None:
    given = defaults(Trainer, use_distributed_sampler=False, limit_test_batches=0)
    with pytest.raises(InputError, match=r"^limit_test_batches must be more than 0"):
        check_trainer(given, fit=True)
    check_trainer(given, fit=True, skip_test=True)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("save_top_k", 0),
        ("monitor", None),
        ("save_on_exception", True),
        ("enable_version_counter", True),
        ("every_n_train_steps", 3),
        ("every_n_epochs", 2),
        ("every_n_epochs", 0),
        ("train_time_interval", 1),
        ("save_on_train_epoch_end", True),
        ("save_on_train_epoch_end", None),
    ],
)
def test_best_ckpt_is_that_of_the_best_validation_or_refused(option: str, value: Any) -> None:
    ours: dict[str, Any] = {**OURS, "save_on_train_epoch_end": False}
    for accepted in ({}, {"save_top_k": 3}, {"save_top_k": -1}, {"every_n_epochs": 1}, {"save_last": True}):
        check_checkpoint(defaults(ModelCheckpoint, **ours | accepted))
    with pytest.raises(InputError, match=f"^{option} must be "):
        check_checkpoint(defaults(ModelCheckpoint, **ours | {option: value}))


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([ModelCheckpoint("run/checkpoints")], "give it another dirpath"),
        ([ModelCheckpoint("run/../run/checkpoints/")], "give it another dirpath"),
        ([OnExceptionCheckpoint("run/checkpoints", "last")], "give it another dirpath"),
        ([EarlyStopping("val/acc")], "monitor='val/acc' of the callback EarlyStopping is not what"),
        ([EarlyStopping("val/accuracy")], "the best val/accuracy is the highest; give mode max"),
        ([ModelCheckpoint(monitor="val/accuracy", mode="min")], "of the callback ModelCheckpoint: the best"),
    ],
)
def test_callbacks_that_would_change_or_damage_the_run_are_refused(callbacks: list[Callback], message: str) -> None:
    ours = RunCheckpoint("run/checkpoints", monitor="val/accuracy", mode="max")
    with pytest.raises(InputError, match=message):
        check_callbacks([*callbacks], ours, METRICS)


def test_a_wrong_monitor_or_mode_of_the_best_is_refused() -> None:
    for monitor, mode in (("val/acc", "max"), ("train/loss_step", "min"), ("val/loss", "max"), ("val/accuracy", "min")):
        with pytest.raises(InputError, match=r"^mon|^mode"):
            check_callbacks([], RunCheckpoint("run", monitor=monitor, mode=mode), METRICS)
    for monitor, mode in METRICS.items():
        check_callbacks([], RunCheckpoint("run", monitor=monitor, mode=mode), METRICS)


def test_other_checkpoints_get_a_folder_of_their_own(tmp_path: Path) -> None:
    theirs = [ModelCheckpoint(monitor="val/loss"), ModelCheckpoint(tmp_path / "theirs")]
    check_callbacks([*theirs], RunCheckpoint(tmp_path, monitor="val/accuracy", mode="max"), METRICS)
    assert [str(each.dirpath) for each in theirs] == [str(tmp_path / "more"), str(tmp_path / "theirs")]


class FakeTrainer(SimpleNamespace):
    """What ModelCheckpoint asks of a trainer; a checkpoint is the number of its step."""

    def __init__(self, folder: Path, ckpt_path: Path | None = None) -> None:
        strategy = SimpleNamespace(
            broadcast=lambda x: x,
            reduce_boolean_decision=lambda decision, all=True: decision,
            remove_checkpoint=lambda path: Path(path).unlink(),
        )
        super().__init__(
            strategy=strategy,
            is_global_zero=True,
            fast_dev_run=False,
            sanity_checking=False,
            state=SimpleNamespace(fn=TrainerFn.FITTING),
            loggers=[],
            global_step=0,
            current_epoch=0,
            callback_metrics={},
            default_root_dir=str(folder),
            ckpt_path=ckpt_path,
        )

    def save_checkpoint(self, path: str, weights_only: bool) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(str(self.global_step))


def validate(checkpoint: RunCheckpoint, trainer: FakeTrainer, scores: list[float]) -> None:
    for score in scores:
        trainer.global_step += 1
        trainer.callback_metrics = {"val/accuracy": torch.tensor(score)}
        checkpoint.on_validation_end(trainer, None)  # type: ignore[arg-type]


SCORES = [0.2, 0.5, 0.3, 0.6, 0.1, 0.4]


@pytest.mark.parametrize("filename", ["best", "last", "x-{epoch}", "{step}-a", ""])
@pytest.mark.parametrize("k", [1, 2, 3, -1])
def test_best_ckpt_is_the_best_and_the_next_best_keep_their_own_names(tmp_path: Path, k: int, filename: str) -> None:
    """Through a move of the run's folder in between, too."""
    options: dict[str, Any] = {**OURS, "save_top_k": k, "filename": filename, "save_on_train_epoch_end": False}
    folder, moved = tmp_path / "run/checkpoints", tmp_path / "moved/checkpoints"
    trainer = FakeTrainer(folder.parent)
    checkpoint = RunCheckpoint(folder, **options)
    checkpoint.setup(trainer, None, "fit")  # type: ignore[arg-type]
    validate(checkpoint, trainer, SCORES[:3])
    assert (folder / "best.ckpt").read_text() == "2"
    folder.parent.rename(moved.parent)
    resumed = RunCheckpoint(moved, **options)
    step, trainer = trainer.global_step, FakeTrainer(moved.parent, moved / "best.ckpt")
    trainer.global_step = step
    resumed.setup(trainer, None, "fit")  # type: ignore[arg-type]
    resumed.on_load_checkpoint(trainer, None, {})  # type: ignore[arg-type]
    resumed.load_state_dict(checkpoint.state_dict())
    validate(resumed, trainer, SCORES[3:])
    assert (moved / "best.ckpt").read_text() == "4"
    assert resumed.best_model_score == torch.tensor(0.6)
    kept = sorted(path.read_text() for path in moved.iterdir() if path.name != "best.ckpt")
    best = sorted(range(1, 7), key=lambda step: SCORES[step - 1], reverse=True)
    assert kept == ([] if k == 1 and filename == "best" else sorted(map(str, best[: k if k > 0 else None])))


def test_another_runs_best_stays_with_it(tmp_path: Path) -> None:
    """Resumed from another folder's checkpoint, whether that folder is there or not, a run has no best yet."""
    options: dict[str, Any] = {**OURS, "save_on_train_epoch_end": False}
    old, new = (RunCheckpoint(tmp_path / name / "checkpoints", **options) for name in ("old", "new"))
    validate(old, FakeTrainer(tmp_path / "old"), [0.9])
    trainer = FakeTrainer(tmp_path / "new", tmp_path / "old/checkpoints/last.ckpt")
    trainer.global_step = 1
    new.on_load_checkpoint(trainer, None, {})  # type: ignore[arg-type]
    new.load_state_dict(old.state_dict())
    assert new.best_model_score is None
    validate(new, trainer, [0.2, 0.1])
    assert (tmp_path / "new/checkpoints/best.ckpt").read_text() == "2"
    assert (tmp_path / "old/checkpoints/best.ckpt").read_text() == "1"


def test_weights_alone_are_none_to_resume_from(tmp_path: Path) -> None:
    files = DurableCheckpointIO()
    files.save_checkpoint({"global_step": 9, "state_dict": {}}, tmp_path / "checkpoints/best.ckpt")
    assert newest_readable(tmp_path) is None
    files.save_checkpoint(
        {"global_step": 5, "state_dict": {}, "optimizer_states": []}, tmp_path / "checkpoints/last.ckpt"
    )
    assert newest_readable(tmp_path)[1]["global_step"] == 5  # type: ignore[index]


def scores(run: Path) -> dict[int, float]:
    """Validation accuracy by step, as TensorBoard shows it."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload().Scalars("val/accuracy")
    return {event.step + 1: event.value for event in events}


def metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def assert_the_best_was_tested(run: Path) -> None:
    found, step = scores(run), read_checkpoint(run / "checkpoints/best.ckpt")["global_step"]
    assert metrics(run)["validation"]["best"] == pytest.approx(max(found.values()))
    assert found[step] == max(found.values())


def accuracy_of(values: Callable[[int], float]) -> Callable[..., None]:
    """A validation whose accuracy is a function of the step."""

    def validation_step(self: ListOpsTask, batch: Any, batch_idx: int) -> None:
        self.log("val/accuracy", values(self.global_step), batch_size=len(batch.y))

    return validation_step


@pytest.mark.slow
def test_a_finished_run_continues_in_a_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With further checkpoint callbacks; no better than before; interrupted, by the same command; the old one gone."""
    monkeypatch.setattr(
        ListOpsTask, "validation_step", accuracy_of(lambda step: {10: 0.9, 20: 0.5, 30: 0.4}.get(step, 0))
    )
    recipe, old, new = write_recipe(tmp_path), tmp_path / "old", tmp_path / "new"
    second = "--trainer.callbacks+=ModelCheckpoint"
    fit(recipe, f"--run_dir={old}", second, "--trainer.callbacks.save_last=true", "--trainer.callbacks.filename=best")
    assert_the_best_was_tested(old)
    assert metrics(old)["validation"] == {"monitor": "val/accuracy", "best": pytest.approx(0.9)}
    assert metrics(old)["continued_from"] is None
    assert {path.name for path in (old / "checkpoints/more").iterdir()} >= {"best.ckpt", "last.ckpt"}
    last = old / "checkpoints/last.ckpt"
    command = [f"--run_dir={new}", f"--ckpt_path={last}", "--trainer.max_epochs=4", "--checkpoint.save_top_k=2"]
    step = ListOpsTask.training_step

    def killed(self: ListOpsTask, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 33:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ListOpsTask, "training_step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        fit(recipe, *command)
    monkeypatch.setattr(ListOpsTask, "training_step", step)
    capsys.readouterr()
    fit(recipe, *command)
    assert f"fit from {new}/checkpoints/last.ckpt, step 30" in capsys.readouterr().err
    assert_the_best_was_tested(new)
    assert metrics(new)["validation"]["best"] == pytest.approx(0.4)
    assert metrics(new)["continued_from"] == str(last)
    names = {path.name for path in (new / "checkpoints").iterdir() if "previous" not in path.name}
    assert names == {"best.ckpt", "last.ckpt", "best-step=30.ckpt", "best-step=40.ckpt"}
    with pytest.raises(SystemExit, match="2"):
        fit(recipe, f"--run_dir={tmp_path}/none", f"--ckpt_path={last}")
    assert "no step was trained" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_whose_test_fails_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = write_recipe(tmp_path, max_epochs=1), tmp_path / "runs/seed0"

    def broken(self: ListOpsTask, batch: Any, batch_idx: int) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(ListOpsTask, "test_step", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            fit(recipe)
    assert f"the training is over and kept in {run}/checkpoints; the same command" in capsys.readouterr().err
    before = (run / "checkpoints/best.ckpt").read_bytes()
    fit(recipe)
    assert metrics(run)["steps"] == 10
    assert (run / "checkpoints/best.ckpt").read_bytes() == before


@pytest.mark.slow
def test_a_monitor_that_is_never_a_number_chooses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ListOpsTask, "validation_step", accuracy_of(lambda step: float("nan")))
    with pytest.raises(SystemExit, match="2"):
        fit(write_recipe(tmp_path, max_epochs=1))
    shown = capsys.readouterr().err
    assert "val/accuracy was not finite at any validation" in shown
    assert f"msssm test --ckpt_path {tmp_path}/runs/seed0/checkpoints/last.ckpt tests the weights of step 10" in shown


def _signalled(answer: Any) -> None:
    outlive_signals(0)
    for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        os.kill(os.getpid(), signum)
    answer.send(signal.alarm(0))


def test_a_signal_to_all_processes_leaves_the_loaders_to_the_batch_that_is_finished(tmp_path: Path) -> None:
    """They end by themselves later, since torch ends a stuck one by SIGTERM, too."""
    last = LastCheckpoint(tmp_path)
    theirs, mine = multiprocessing.Pipe()
    loader = multiprocessing.get_context("fork").Process(target=_signalled, args=(mine,))
    before = {signum: signal.signal(signum, last._note) for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)}
    try:
        loader.start()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    loader.join(10)
    assert loader.exitcode == 0
    assert 0 < theirs.recv() <= OUTLIVES


@pytest.mark.parametrize("options", ["--trainer.devices=99", "--trainer.devices=99 --trainer.accelerator=cpu"])
def test_no_more_processes_than_a_processor_bears(
    options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        fit(write_recipe(tmp_path), *options.split())
    assert "devices must be at most 8 on a CPU of 4 cores, got" in capsys.readouterr().err
