"""The faults of `make soak`: what is planted in the process or done to the files, and how the run must take it."""

import errno
import math
import os
import random
import re
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.support import runs

STEPS, EPOCH = 20, 10  # of a run; between two validations, before and after which a checkpoint is written


@dataclass
class Fault:
    """One fault, and what must come of it.

    Attributes:
        plant: called in the process before the command.
        damage: done to the run folder or the data before the command.
        code: with which the run ends.
        says: pattern of the last line that the user sees, where the run ends by itself.
        damage: done to the run folder before the command; returns a pattern that the user must see, if any.
        sure: it hits in any case; otherwise the run may be at its end before, with 0.
        again: most steps that are done again, of those that were done.
        other_codes: where it comes before the command is ready for it.
    """

    plant: Callable[[], None] | None
    code: int
    says: str = ""
    damage: Callable[[Path], str | None] | None = None
    sure: bool = True
    again: int = EPOCH
    other_codes: frozenset[int] = frozenset()


def drawn(draw: random.Random, progress: int, spare: int, best: int, seconds: float, data: Path) -> dict[str, Fault]:
    """Every fault that can hit a run which would go on from step `progress`, at a place that is drawn.

    Args:
        draw: the source of the schedule.
        progress: steps that the run has kept.
        spare: steps of its newest checkpoint besides last.ckpt and best.ckpt.
        best: steps of best.ckpt, or 0.
        seconds: that an uninterrupted run takes.
        data: folder of the data set.
    """
    step, when = draw.randrange(min(progress, STEPS - 1), STEPS), draw.uniform(0.2, seconds)
    writing = partial(runs.kill_while_writing, draw.randrange(1, 5), draw.choice(["write", "rename", "written"]))
    killed = -signal.SIGKILL
    saved = r"{}: saved at step \d+; the same command resumes"
    unwritten = (
        r"\[Errno \d+\] cannot write the checkpoint \S.*\.ckpt \([\d.]+ MiB\): {}; (\S.* is as it was|there is none "
        r"yet)\. Free space or permit writing there, and run the same command again"
    )
    bad_loss = rf"the training loss is {{}} at step {step}: .+"
    faults = {
        "SIGKILL in the test": Fault(partial(runs.kill_in_test, signal.SIGKILL), killed),
        "SIGTERM in the test": Fault(
            partial(runs.kill_in_test, signal.SIGTERM), 143, "SIGTERM: .*the same command resumes"
        ),
        "SIGKILL at any time": Fault(partial(_timer, when, signal.SIGKILL), killed, sure=False),
        "SIGTERM at any time": Fault(
            partial(_timer, when, signal.SIGTERM),
            143,
            "SIGTERM: .*the same command resumes",
            sure=False,
            again=2,
            other_codes=frozenset({-signal.SIGTERM}),
        ),
        "damaged data": Fault(partial(runs.kill_in_test, signal.SIGKILL), killed, damage=partial(_one_of, draw, data)),
    }
    if progress < STEPS:
        faults |= {
            "SIGKILL at a step": Fault(partial(runs.kill_at, step), killed),
            "SIGKILL in validation": Fault(partial(runs.kill_in_validation, (EPOCH, STEPS)), killed, again=1),
            "SIGKILL while writing": Fault(writing, killed, sure=False),
            "SIGKILL while the recipe is saved": Fault(runs.kill_while_saving_config, killed),
            "disk full": Fault(partial(_no_room, draw.randrange(200, 30_000)), 2, unwritten.format("File too large")),
            "read-only": Fault(partial(_refuse, errno.EROFS), 2, unwritten.format("Read-only file system")),
            "permission denied": Fault(partial(_refuse, errno.EACCES), 2, unwritten.format("Permission denied")),
            "NaN in the loss": Fault(partial(_poison, step, math.nan), 2, bad_loss.format("nan")),
            "Inf in the loss": Fault(partial(_poison, step, math.inf), 2, bad_loss.format("inf")),
        }
        for signum, code in ((signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)):
            line = saved.format(signum.name)
            faults[f"{signum.name} at a step"] = Fault(partial(runs.kill_at, step, signum), code, line, again=1)
    if progress:
        faults["garbage behind the curves"] = Fault(None, 0, damage=partial(_lengthen, draw))
        stop = partial(runs.kill_at, STEPS - 1) if progress < STEPS else partial(runs.kill_in_test, signal.SIGKILL)
        for name, files, damage in (
            ("last.ckpt corrupted", ["last"], _flip),
            ("last.ckpt truncated", ["last"], _truncate),
            ("last.ckpt and best.ckpt truncated", ["last", "best"], _truncate),
        ):
            if "best" in files and not spare < best:
                continue  # a lost best one is found again only where its validation is repeated
            faults[name] = Fault(stop, killed, damage=partial(_checkpoints, draw, files, damage), again=STEPS)
    return faults


def note(path: Path) -> None:
    """Keeps in `path`, whatever becomes of the process, its steps so far, and when it sent itself a signal."""
    from tasks import ListOpsTask

    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.pwrite(descriptor, f"{0:20}".encode(), 0)

    def send(signum: int) -> None:
        os.pwrite(descriptor, f"{time.monotonic():20.3f}".encode(), 20)
        os.kill(os.getpid(), signum)

    runs.send = send

    def noted(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, batch: Any, batch_idx: int) -> Any:
            os.pwrite(descriptor, f"{self.global_step:20}".encode(), 0)
            return original(self, batch, batch_idx)

        return method

    for name in ("training_step", "validation_step", "test_step"):
        setattr(ListOpsTask, name, noted(getattr(ListOpsTask, name)))


def noted(path: Path) -> tuple[int, float | None]:
    """The steps, and the time of the signal on the clock of `time.monotonic`."""
    words = path.read_text().split()
    return int(words[0]), float(words[1]) if len(words) > 1 else None


def watch_memory(path: Path, steps: frozenset[int]) -> None:
    """Appends to `path` "step, seconds, resident MiB" at these steps, and "peak" with it at the end of the command."""
    from tasks import ListOpsTask
    from tasks.cli.training import MsssmCLI

    def line(step: object, mib: float) -> None:
        with path.open("a") as file:
            file.write(f"{step} {time.monotonic()} {mib}\n")

    step_of, after_fit = ListOpsTask.training_step, MsssmCLI.after_fit

    def training_step(self: ListOpsTask, batch: Any, batch_idx: int) -> Any:
        if self.global_step in steps:
            line(self.global_step, resident_mib())
        return step_of(self, batch, batch_idx)

    def end(self: MsssmCLI) -> None:
        after_fit(self)
        line("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    ListOpsTask.training_step, MsssmCLI.after_fit = training_step, end  # type: ignore[method-assign]


def resident_mib() -> float:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _timer(seconds: float, signum: int) -> None:
    threading.Timer(seconds, lambda: runs.send(signum)).start()


def _no_room(size: int) -> None:
    """There is room for `size` bytes of a checkpoint."""
    from tasks.run.checkpoint_io import DurableCheckpointIO

    original = DurableCheckpointIO.save_checkpoint

    def save_checkpoint(self: DurableCheckpointIO, *arguments: Any, **options: Any) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            original(self, *arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    DurableCheckpointIO.save_checkpoint = save_checkpoint  # type: ignore[method-assign]


def _refuse(error: int) -> None:
    """Nothing can be written beside a checkpoint; a root user may write without the permission."""
    from tasks.run import checkpoint_io

    def refuse(*arguments: Any) -> None:
        raise OSError(error, os.strerror(error))

    checkpoint_io.os = runs.Patched(fsync=refuse)  # type: ignore[assignment]


def _poison(step: int, value: float) -> None:
    """The logits of a step are `value`, or for Inf the first is so far above the others that the loss is infinite."""
    from tasks import ListOpsTask

    original = ListOpsTask.forward

    def forward(self: ListOpsTask, x: Any, lengths: Any = None) -> Any:
        logits = original(self, x, lengths)
        if not (self.training and self.global_step >= step):
            return logits
        if math.isnan(value):
            return logits * value
        bad = logits.clone()
        bad[:, 1:] = -value
        return bad

    ListOpsTask.forward = forward  # type: ignore[method-assign]


def _checkpoints(
    draw: random.Random, names: list[str], damage: Callable[[random.Random, Path], None], run_dir: Path
) -> str | None:
    for name in names:
        if (path := run_dir / f"checkpoints/{name}.ckpt").exists():
            damage(draw, path)
    return None


def _flip(draw: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for where in draw.sample(range(len(content)), 20):
        content[where] ^= 0xFF
    path.write_bytes(content)


def _truncate(draw: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def _one_of(draw: random.Random, data: Path, run_dir: Path) -> str:
    """Spoils one array of the data on disk; returns what the user must be told."""
    path = draw.choice(sorted(data.rglob("*.npy")))
    draw.choice([_flip, _truncate])(draw, path)
    return re.escape(path.parent.name) + r" is damaged \(.+\): building it again"


def _lengthen(draw: random.Random, run_dir: Path) -> None:
    """As where the machine went down while the curves were written."""
    for path in run_dir.glob("events.out.tfevents.*"):
        with path.open("ab") as file:
            file.write(draw.randbytes(draw.randrange(1, 100)))
