"""Trainings of an experiment or a sweep: `msssm fit` in processes, as many at a time as there is room for."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tasks.messages import say

LOG = "log.txt"
POLL = 0.1  # seconds


class Process(Protocol):
    """A training that runs somewhere, with these methods of `subprocess.Popen`."""

    def poll(self) -> int | None:
        """Exit code; None as long as it runs."""

    def terminate(self) -> None:
        """Ends it with a checkpoint."""

    def kill(self) -> None:
        """Ends it at once."""

    def wait(self) -> int:
        """Waits for its end."""


@dataclass(frozen=True)
class Training:
    """Description of a training, independent of its place.

    Attributes:
        name: Name in messages.
        folder: Folder of the run, absolute; its `log.txt` ends with the error, if there is one.
        arguments: Arguments of `msssm fit`, without its folder.
        environment: Additional variables.
        cwd: Folder to which relative paths among its options refer.
        talks: Whether its standard output is the runner's, rather than the log.
    """

    name: str
    folder: Path
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    cwd: Path = field(default_factory=Path.cwd)
    talks: bool = False

    @property
    def complete(self) -> bool:
        """Whether the run is complete: its marker counts, since a terminated process may exit with 0."""
        return (self.folder / "metrics.json").exists()

    @property
    def command(self) -> list[str]:
        """Command line of its process."""
        return [sys.executable, "-m", "msssm_command", "fit", *self.arguments, f"--run_dir={self.folder}"]

    def start(self) -> "subprocess.Popen[bytes]":
        """Starts it in a new session: Ctrl-C goes to the runner, which passes it on once."""
        with (self.folder / LOG).open("ab") as log:
            return subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=None if self.talks else log,
                stderr=log,
                cwd=self.cwd,
                env={**os.environ, **dict(self.environment)},
                close_fds=False,  # a lock of the runner that is inheritable is held as long as the training lives
                start_new_session=True,
            )

    def code(self, returned: int) -> int:
        """Returns 0 for a complete run, else the exit code, or minus the signal that ended it."""
        return 0 if self.complete else returned or -signal.SIGTERM

    def last_lines(self, count: int = 1) -> str:
        """The end of its log."""
        log = self.folder / LOG
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return "\n".join(lines[-count:]).strip() or "nothing"


Start = Callable[[Training], Process]


def drive(start: Start, room: int, trainings: Iterator[Training], finish: Callable[[Training, int], None]) -> None:
    """Runs trainings until there are no more; any exception ends them too, each with a checkpoint.

    Args:
        start: Starts one, on this machine or on a cluster.
        room: Trainings at a time.
        trainings: The next one is requested when there is room for it.
        finish: Called with each that has ended, and its code.

    Raises:
        SystemExit: with code 130 after Ctrl-C or SIGTERM, when all have ended; a second Ctrl-C does not wait for them.
    """
    running: dict[Training, Process] = {}
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not asked:
            while len(running) < room and not asked and (training := next(trainings, None)) is not None:
                running[training] = start(training)
            if not running:
                return
            time.sleep(POLL)
            for training, process in list(running.items()):
                if (code := process.poll()) is not None:
                    del running[training]
                    finish(training, training.code(code))
    finally:
        _stop(list(running.values()))
        for number, handler in before.items():
            signal.signal(number, handler)
    say("stopped; the same command resumes")
    raise SystemExit(130)


def _stop(processes: Sequence[Process]) -> None:
    try:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
        raise
