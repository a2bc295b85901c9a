"""Where trainings run: on this machine, or as jobs of SLURM through submitit, whose nodes see the same folders."""

import argparse
import logging
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from msssm.errors import InputError
from tasks.table.run import LOG, POLL, Start, Training

DAY = 24 * 60  # minutes


def submitter(cluster: str, folder: Path, resources: Sequence[str]) -> Start:
    """What submits trainings. Those that reach their time limit, or lose their node, are queued again by submitit.

    Args:
        cluster: `slurm`, `local` to try it on this machine, or what else submitit knows.
        folder: Folder for submitit's own files.
        resources: Parameters of submitit's executor, KEY=VALUE; `timeout_min` is a day by default.

    Raises:
        InputError: submitit is not installed, knows no such cluster or parameter, or cannot reach it.
    """
    try:
        from submitit import AutoExecutor
    except ModuleNotFoundError as error:
        raise InputError("--cluster needs submitit: pip install 'msssm[slurm]'") from error
    if wrong := [word for word in resources if not word.partition("=")[2]]:
        raise InputError(f"--resources {wrong[0]}: expected KEY=VALUE, such as gpus_per_node=1")
    given = {word.partition("=")[0]: yaml.safe_load(word.partition("=")[2]) for word in resources}
    logging.getLogger("submitit").setLevel(logging.ERROR)
    try:
        executor = AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**{"timeout_min": DAY, "name": "msssm", **given})
    except (ValueError, NameError, TypeError, RuntimeError) as error:
        raise InputError(f"--cluster {cluster}: {' '.join(str(error).split())}") from error
    return lambda training: Job(training, executor.submit(OnNode(training)))


class Job:
    """Job of submitit, with the methods of a process."""

    def __init__(self, training: Training, job: Any) -> None:
        """Holds a job that was submitted."""
        self.training, self.job = training, job

    def poll(self) -> int | None:
        """Exit code; None as long as it waits or runs. Why a node no longer answers is the last line of its log."""
        from submitit.core.utils import FailedJobError, UncompletedJobError

        if not self.job.done():
            return None
        try:
            return int(self.job.result())
        except (FailedJobError, UncompletedJobError) as error:
            with (self.training.folder / LOG).open("a") as log:
                print(" ".join(str(error).split())[-500:], file=log)
            return 1

    def terminate(self) -> None:
        """Cancels it; its training writes a checkpoint."""
        self.job.cancel()

    kill = terminate

    def wait(self) -> int:
        """Waits for its end."""
        self.job.wait()
        return 0


class OnNode:
    """Training on a node, which runs to its end, or to a checkpoint when the node is taken away."""

    def __init__(self, training: Training) -> None:
        """Starts nothing yet."""
        self.training = training
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Runs the training, and returns its `code`. An interruption of this call ends the training."""
        # submitit announces the end by SIGUSR2 to all processes of the job, and would kill the training with it.
        handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        self.process = self.training.start()
        signal.signal(signal.SIGUSR2, handler or signal.SIG_DFL)
        try:
            while self.process.poll() is None:  # a wait would block the one of `checkpoint`, which runs in a signal
                time.sleep(POLL)
        finally:
            self._end()
        return self.training.code(self.process.returncode)

    def checkpoint(self) -> Any:
        """Ends the training before the time limit or the loss of its node, and returns the job to queue again."""
        from submitit.helpers import DelayedSubmission

        self._end()
        return DelayedSubmission(OnNode(self.training))

    def _end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


def place_arguments(parser: argparse.ArgumentParser, jobs: str) -> None:
    """Adds the options that say where trainings run; `jobs` describes how many at a time by default."""
    parser.add_argument("--jobs", type=_count, metavar="N", help=f"trainings at a time; {jobs}")
    parser.add_argument("--cluster", metavar="NAME", help="hand them to a cluster through submitit: slurm")
    parser.add_argument(
        "--resources",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of each training there, parameters of submitit: timeout_min=720 slurm_partition=gpu gpus_per_node=1",
    )


def place(options: argparse.Namespace, here: int, folder: Path) -> tuple[Start, int]:
    """What starts trainings where `place_arguments` say, and how many at a time.

    Args:
        options: Parsed options.
        here: Trainings at a time on this machine, unless the options say so; a cluster gets all at once.
        folder: Folder for the files of a cluster's jobs.

    Raises:
        InputError: a resource is wrong, or the cluster cannot be used.
    """
    if options.cluster is not None:
        return submitter(options.cluster, folder / "submitit", options.resources), options.jobs or 10_000
    if options.resources:
        raise InputError("--resources are those of a cluster; name one with --cluster")
    return Training.start, options.jobs or here


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {word}")
    return int(word)
