"""One training of an experiment: `msssm fit` in a separate process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

LOG = "log.txt"
POLL = 0.1  # seconds


@dataclass(frozen=True)
class Training:
    """Description of a training, independent of its place.

    Attributes:
        name: for messages.
        folder: of the run, absolute; its `log.txt` ends with the error, if there is one.
        arguments: of `msssm fit`, without its folder.
        environment: additional variables.
        cwd: folder to which relative paths among its options refer.
        talks: whether its standard output is the runner's, rather than the log.
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
        return [sys.executable, "-m", "tasks.cli.main", "fit", *self.arguments, f"--run_dir={self.folder}"]

    def start(self, *locks: int) -> "subprocess.Popen[bytes]":
        """Starts it in a new session: Ctrl-C goes to the runner, which passes it on once.

        Args:
            locks: descriptors that it keeps open as long as it lives.
        """
        with (self.folder / LOG).open("ab") as log:
            output: IO[Any] | None = None if self.talks else log
            return subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                cwd=self.cwd,
                env={**os.environ, **dict(self.environment)},
                pass_fds=locks,
                start_new_session=True,
            )

    def code(self, returned: int) -> int:
        """Returns 0 for a complete run, else the exit code, or minus the signal that ended it."""
        return 0 if self.complete else returned or -signal.SIGTERM


def last_lines(folder: Path, count: int = 1) -> str:
    """The end of a run's log."""
    log = folder / LOG
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return "\n".join(lines[-count:]).strip() or "nothing"


class Remote:
    """Training on a node of a cluster, which runs to its end, or to a checkpoint when the node is taken away."""

    def __init__(self, training: Training) -> None:
        """Starts nothing yet."""
        self.training = training
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Runs the training, and returns its `code`. An interruption of this call ends the training."""
        # submitit announces the end by SIGUSR2 to all processes of the job, and would kill the training with it.
        handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        self._process = self.training.start()
        signal.signal(signal.SIGUSR2, handler or signal.SIG_DFL)
        try:
            while self._process.poll() is None:  # a wait would not be interrupted by Ray's cancellation
                time.sleep(POLL)
        finally:
            self._end()
        return self.training.code(self._process.returncode)

    def checkpoint(self) -> Any:
        """Ends the training before the time limit or the loss of its node, and returns the job to queue again."""
        from submitit.helpers import DelayedSubmission

        self._end()
        return DelayedSubmission(Remote(self.training))

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def __getstate__(self) -> dict[str, Any]:
        """State without the process, for the trip to a node."""
        return {"training": self.training, "_process": None}


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Delays Ctrl-C and SIGTERM, which between a training's start and its registration would leave it behind."""
    caught: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])
