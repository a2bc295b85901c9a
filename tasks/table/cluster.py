"""Pools of more than one machine: SLURM through submitit, or a Ray cluster. All see the same folders."""

import logging
from pathlib import Path
from typing import Any

from msssm.errors import InputError
from tasks.table.training import LOG, Remote, Training, interrupts_later

DAY = 24 * 60  # minutes


class SubmititPool:
    """Jobs of SLURM; `local` runs them on this machine, to try it.

    A job that is about to reach its time limit, or whose node is taken away, writes a checkpoint, and is queued again.

    Args:
        size: jobs in the queue at a time.
        cluster: `slurm`, `local`, or what else submitit knows.
        folder: for submitit's own files.
        resources: parameters of submitit's executor, such as `slurm_partition`; `timeout_min` is a day by default.
    """

    def __init__(self, size: int, cluster: str, folder: Path, resources: dict[str, Any]) -> None:
        """Opens the executor.

        Raises:
            InputError: submitit is not installed, knows no such cluster or parameter, or cannot reach it.
        """
        try:
            from submitit import AutoExecutor
        except ModuleNotFoundError as error:
            raise InputError("--cluster needs submitit: pip install 'msssm[slurm]'") from error
        logging.getLogger("submitit").setLevel(logging.ERROR)
        self.size = size
        self.jobs: dict[Training, Any] = {}
        try:
            self.executor = AutoExecutor(folder=folder, cluster=cluster)
            self.executor.update_parameters(**{"timeout_min": DAY, "name": "msssm", **resources})
        except (ValueError, NameError, TypeError, RuntimeError) as error:
            raise InputError(f"--cluster {cluster}: {' '.join(str(error).split())}") from error

    def start(self, training: Training) -> None:
        """Submits a training."""
        with interrupts_later():
            self.jobs[training] = self.executor.submit(Remote(training))

    def finished(self) -> list[tuple[Training, int]]:
        """Trainings that have ended since the last call, each with its code."""
        ended = [(training, job) for training, job in self.jobs.items() if job.done()]
        return [(training, self._code(training, self.jobs.pop(training))) for training, job in ended]

    @staticmethod
    def _code(training: Training, job: Any) -> int:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            return int(job.result())
        except (FailedJobError, UncompletedJobError) as error:
            return _lost(training, error)

    def stop(self) -> None:
        """Cancels all jobs, and waits for their checkpoints."""
        for job in self.jobs.values():
            job.cancel()
        for job in self.jobs.values():
            job.wait()


class RayPool:
    """Tasks of a Ray cluster.

    Args:
        size: tasks at a time, those that wait included.
        address: of the cluster: `auto`, `ray://host:10001`; `local` starts one on this machine.
        resources: options of a Ray task, such as `num_gpus`; one CPU by default.
    """

    def __init__(self, size: int, address: str, resources: dict[str, Any]) -> None:
        """Connects to the cluster.

        Raises:
            InputError: Ray is not installed, does not answer, or knows no such option.
        """
        try:
            import ray
        except ModuleNotFoundError as error:
            raise InputError("--ray needs Ray: pip install 'msssm[ray]'") from error
        self.size, self.ray = size, ray
        self.tasks: dict[Any, Training] = {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            self.run = ray.remote(_run).options(**{"num_cpus": 1, "max_retries": 0, **resources})
        except (ConnectionError, ValueError, TypeError) as error:
            raise InputError(f"--ray {address}: {' '.join(str(error).split())}") from error

    def start(self, training: Training) -> None:
        """Submits a training."""
        with interrupts_later():
            self.tasks[self.run.remote(training)] = training

    def finished(self) -> list[tuple[Training, int]]:
        """Trainings that have ended since the last call, each with its code."""
        ended, _ = self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0)
        return [(self.tasks[task], self._code(task, self.tasks.pop(task))) for task in ended]

    def _code(self, task: Any, training: Training) -> int:
        try:
            return int(self.ray.get(task))
        except self.ray.exceptions.RayError as error:
            return _lost(training, error)

    def stop(self) -> None:
        """Cancels all tasks, waits for their checkpoints, and disconnects."""
        for task in self.tasks:
            self.ray.cancel(task)
        if self.tasks:
            self.ray.wait(list(self.tasks), num_returns=len(self.tasks))
        self.ray.shutdown()


def _run(training: Training) -> int:
    return Remote(training)()


def _lost(training: Training, error: Exception) -> int:
    """Code of a training whose node no longer answers; the reason becomes the last line of its log."""
    if training.complete:
        return 0
    with (training.folder / LOG).open("a") as log:
        print(" ".join(str(error).split())[-500:], file=log)
    return 1
