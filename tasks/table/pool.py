"""Where trainings run, and how many at a time."""

import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from tasks.table.training import POLL, Training, interrupts_later


class Pool(Protocol):
    """Place of trainings: this machine, or a cluster with a scheduler.

    Attributes:
        size: trainings at a time, including those that wait for a node.
    """

    size: int

    def start(self, training: Training) -> None:
        """Starts a training, or submits it to the scheduler."""

    def finished(self) -> list[tuple[Training, int]]:
        """Trainings that have ended since the last call, each with its `Training.code`."""

    def stop(self) -> None:
        """Ends all trainings, each with a checkpoint from which it can resume."""


class LocalPool:
    """Processes of this machine.

    Args:
        size: how many at a time.
        lock: descriptor that each training keeps open as long as it lives.
    """

    def __init__(self, size: int, lock: int | None = None) -> None:
        """Starts without trainings."""
        self.size, self.locks = size, () if lock is None else (lock,)
        self.running: dict[Training, subprocess.Popen[bytes]] = {}

    def start(self, training: Training) -> None:
        """Starts a training."""
        with interrupts_later():
            self.running[training] = training.start(*self.locks)

    def finished(self) -> list[tuple[Training, int]]:
        """Trainings that have ended since the last call, each with its code."""
        ended = [training for training, process in self.running.items() if process.poll() is not None]
        return [(training, training.code(self.running.pop(training).returncode)) for training in ended]

    def stop(self) -> None:
        """Ends all trainings with a checkpoint; at a second Ctrl-C, without."""
        processes = list(self.running.values())
        try:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
        except KeyboardInterrupt:
            for process in processes:
                process.kill()
            raise


def drive(pool: Pool, trainings: Iterator[Training], finish: Callable[[Training, int], None]) -> None:
    """Runs trainings until there are no more; any exception ends them too.

    Args:
        pool: where they run.
        trainings: the next one is requested when there is room for it.
        finish: called with each that has ended, and its code.
    """
    running = 0
    try:
        while True:
            while running < pool.size and (training := next(trainings, None)) is not None:
                pool.start(training)
                running += 1
            if not running:
                return
            time.sleep(POLL)
            for training, code in pool.finished():
                running -= 1
                finish(training, code)
    finally:
        pool.stop()
