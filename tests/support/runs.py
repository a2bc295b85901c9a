"""Whole runs of the command in processes of their own, that tests may kill, and what such a run leaves behind."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tasks.cli.training", "tests.support.recipes"])


def _child(arguments: list[str], fault: Callable[[], None] | None, output: Path) -> None:
    from tasks.cli.main import main

    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the loader's processes, as where the command is typed
    if fault is not None:
        fault()
    sys.argv = ["msssm", *arguments]
    main(arguments)


def run(arguments: list[str], output: Path, fault: Callable[[], None] | None = None, timeout: float = 120) -> int:
    """`msssm` with `arguments` in a process of its own; what it prints is appended to `output`.

    Args:
        arguments: of the command.
        output: file for standard output and error.
        fault: called in the process before the command, to plant a fault; importable.
        timeout: seconds.

    Returns:
        The exit code; minus the number of the signal for a process that was killed, as in `subprocess`.
    """
    process = _CONTEXT.Process(target=_child, args=(arguments, fault, output))
    process.start()
    try:
        process.join(timeout)
        if process.exitcode is None:
            raise TimeoutError(f"{arguments} did not end within {timeout} s: {output.read_text()[-2000:]}")
        return process.exitcode
    finally:
        process.kill()


def send(signum: int) -> None:
    """Sends this process a signal, as every fault does."""
    os.kill(os.getpid(), signum)


def kill_at(step: int, signum: int = signal.SIGKILL) -> None:
    """A fault: the process sends itself a signal within training step `step`, counted from 0."""
    _interrupt("training_step", lambda task, index: task.global_step == step, signum)


def kill_in_validation(steps: tuple[int, ...], signum: int = signal.SIGKILL) -> None:
    """A fault: at the second batch of a validation after one of these numbers of steps."""
    _interrupt("validation_step", lambda task, index: task.global_step in steps and index == 1, signum)


def kill_in_test(signum: int = signal.SIGKILL) -> None:
    """A fault: at the first batch of the test."""
    _interrupt("test_step", lambda task, index: index == 0, signum)


def kill_at_epoch_end(steps: tuple[int, ...], signum: int = signal.SIGKILL) -> None:
    """A fault: at the end of an epoch that ends after one of these numbers of steps."""
    from tasks.base import SequenceTask

    original = SequenceTask.on_train_epoch_end

    def interrupted(self: SequenceTask) -> None:
        if self.global_step in steps:
            send(signum)
        original(self)

    SequenceTask.on_train_epoch_end = interrupted  # type: ignore[method-assign]


def kill_while_writing(count: int, when: str = "write") -> None:
    """A fault: SIGKILL at the `count`-th checkpoint, half-written, between its renames, or after them."""
    from tasks.run import checkpoint_io

    calls = {"count": 0}
    replace, sync = os.replace, os.fsync

    def interrupted_sync(descriptor: int) -> None:
        calls["count"] += 1
        if calls["count"] == 2 * count - (when == "write"):  # the file and the folder of each checkpoint
            if when == "write":
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            send(signal.SIGKILL)
        sync(descriptor)

    def interrupted_replace(source: Any, target: Any) -> None:
        if when == "rename" and calls["count"] == 2 * count - 1 and str(target).endswith(("last.ckpt", "best.ckpt")):
            send(signal.SIGKILL)
        replace(source, target)

    checkpoint_io.os = Patched(fsync=interrupted_sync, replace=interrupted_replace)  # type: ignore[assignment]


def kill_while_saving_config() -> None:
    """A fault: SIGKILL with config.yaml written, but not yet in its place."""
    from tasks.run import provenance

    def interrupted(source: Any, target: Any) -> None:
        if Path(target).name == "config.yaml":
            os.kill(os.getpid(), signal.SIGKILL)
        os.replace(source, target)

    provenance.os = Patched(replace=interrupted)  # type: ignore[assignment]


class Patched:
    """The module `os` with some functions replaced, for one module alone."""

    def __init__(self, **functions: Any) -> None:
        vars(self).update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def _interrupt(method: str, here: Callable[[Any, int], bool], signum: int) -> None:
    from tasks import ECGTask, ImageTask, ListOpsTask

    def interrupt(original: Callable[..., Any]) -> Callable[..., Any]:
        def interrupted(self: Any, batch: Any, batch_idx: int) -> Any:
            if here(self, batch_idx):
                send(signum)
            return original(self, batch, batch_idx)

        return interrupted

    for task in (ECGTask, ImageTask, ListOpsTask):
        setattr(task, method, interrupt(getattr(task, method)))


def weights(folder: Path) -> dict[str, Any]:
    """Weights, averages and optimiser of last.ckpt, flat."""
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    keys = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")
    return dict(_flat({key: checkpoint[key] for key in keys if key in checkpoint}))


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [item for key, each in value.items() for item in _flat(each, f"{prefix}.{key}")]
    if isinstance(value, list | tuple):
        return [item for key, each in enumerate(value) for item in _flat(each, f"{prefix}.{key}")]
    return [(prefix, value)]


def curve(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar that TensorBoard shows, (step, value) in its order, but for the times."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = {tag for tag in events.Tags()["scalars"] if not tag.endswith("_per_second")}
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in sorted(tags)}


def numbers(folder: Path) -> dict[str, Any]:
    """What a complete run measured, but for its speed."""
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["report"].pop("train_images_per_second", None)
    return {key: metrics[key] for key in ("test", "report", "validation", "steps", "epochs")}


def answers(folder: Path) -> dict[str, Any]:
    """What it predicted for each sample of the test."""
    with np.load(folder / "predictions.npz", allow_pickle=False) as content:
        return {name: content[name].tolist() for name in content}


def assert_same(folder: Path, whole: Path) -> None:
    """Two complete runs are the same to the bit: weights, optimiser, metrics, answers, every point of every curve."""
    for what in (weights, numbers, answers, curve):
        ours, theirs = what(folder), what(whole)
        different = {
            key: (ours.get(key), theirs.get(key))
            for key in ours.keys() | theirs.keys()
            if not _equal(ours.get(key), theirs.get(key))
        }
        assert not different, f"{what.__name__} differ: {different}"


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else bool(a == b)
