"""Trials: `msssm fit` in processes of their own, and what becomes of them."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.trial import Trial, TrialState

from msssm.errors import InputError
from tasks.experiments.sweep.space import Option
from tasks.run.provenance import read_json

POLL = 0.1  # seconds


class Runner:
    """Runs the trials of a study until there are enough.

    A trial whose `msssm fit` ends with an error has failed, which a search must survive: a learning rate that diverges
    ends so. One that a signal ended is unfinished, and is taken up again by the next sweep.

    Args:
        study: that suggests the values, and keeps them.
        space: what is varied.
        folder: of the trials, `trial<k>`.
        arguments: of every `msssm fit`.
        lock: descriptor that a trial keeps open as long as it lives.
    """

    def __init__(
        self, study: optuna.Study, space: Sequence[Option], folder: Path, arguments: list[str], lock: int
    ) -> None:
        self.study, self.space, self.folder, self.arguments, self.lock = study, space, folder, arguments, lock
        self.running: dict[Trial, subprocess.Popen[bytes]] = {}

    def run(self, trials: int, jobs: int) -> None:
        """Until the study has `trials` finished ones, `jobs` at a time.

        Raises:
            ValueError: a trial was ended by a signal, or none of the sweep came to its end.
        """
        unfinished = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        waiting = [Trial(self.study, trial._trial_id) for trial in unfinished]
        try:
            while True:
                while len(self.running) < jobs and (waiting or len(self.study.trials) < trials):
                    self._start(waiting.pop(0) if waiting else self._ask())
                if not self.running:
                    break
                time.sleep(POLL)
                for trial in [trial for trial, process in self.running.items() if process.poll() is not None]:
                    self._finish(trial, self.running.pop(trial).returncode)
        finally:
            self._stop()
        if not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            raise InputError(f"no trial came to its end: the first one says, {last_line(self.folder / 'trial0')}")

    def _ask(self) -> Trial:
        # Seeded by the trial's number: a sweep that was interrupted asks what it would have asked.
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = optuna.samplers.TPESampler(seed=number)
        return self.study.ask()

    def _start(self, trial: Trial) -> None:
        values = [f"--{option.name}={option.suggest(trial)}" for option in self.space]
        folder = self.folder / f"trial{trial.number}"
        folder.mkdir(exist_ok=True)
        if (folder / "metrics.json").exists():  # it ended when the sweep was gone
            self._finish(trial, 0)
            return
        command = [sys.executable, "-m", "tasks.main", "fit", *self.arguments, *values]
        with (folder / "log.txt").open("ab") as log, _interrupts_later():
            self.running[trial] = subprocess.Popen(
                [*command, f"--run_dir={folder}", "--skip_test=true"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(self.lock,),
                start_new_session=True,  # Ctrl-C is for the sweep, which passes it on once
            )

    def _finish(self, trial: Trial, code: int) -> None:
        folder = self.folder / f"trial{trial.number}"
        values = ", ".join(f"{name} {shown(value)}" for name, value in trial.params.items())
        if (folder / "metrics.json").exists():
            validation = read_json(folder / "metrics.json")["validation"]
            self.study.tell(trial, validation["best"])
            print(f"{folder.name}: {validation['monitor']} {validation['best']:.4f}, {values}", flush=True)
        elif code in (1, 2):
            self.study.tell(trial, state=TrialState.FAIL)
            print(f"{folder.name}: failed, {values}: {last_line(folder)}", flush=True)
        else:
            number = -code if code < 0 else code - 128
            name = signal.Signals(number).name if number in set(signal.Signals) else f"code {code}"
            raise InputError(f"{folder} was ended by {name}; the same command goes on from its checkpoint")

    def _stop(self) -> None:
        """Ends what runs, each with a checkpoint; at a second Ctrl-C without."""
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


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Within, a Ctrl-C waits: one between a trial's start and its entry in `running` would leave it behind."""
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


def last_line(folder: Path) -> str:
    """Of a trial's log."""
    lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "nothing"


def shown(value: object) -> str:
    """A value of an option, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
