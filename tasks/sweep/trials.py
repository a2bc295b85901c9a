"""Trials: `msssm fit` in processes of their own, and what becomes of them."""

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
from optuna.trial import Trial, TrialState

from msssm.errors import InputError
from tasks.run.provenance import read_json
from tasks.sweep.space import Option
from tasks.table.pool import Pool, drive
from tasks.table.training import Training, last_lines


class Runner:
    """Runs the trials of a study until there are enough.

    A trial whose `msssm fit` ends with an error has failed, which a search must survive: a learning rate that diverges
    ends so. One that a signal ended is unfinished, and is taken up again by the next sweep.

    Args:
        study: that suggests the values, and keeps them.
        space: what is varied.
        folder: of the trials, `trial<k>`.
        arguments: of every `msssm fit`.
    """

    def __init__(self, study: optuna.Study, space: Sequence[Option], folder: Path, arguments: list[str]) -> None:
        """Starts without trials."""
        self.study, self.space, self.folder, self.arguments = study, space, folder, arguments
        self.trials: dict[Training, Trial] = {}

    def run(self, trials: int, pool: Pool) -> None:
        """Runs until the study has `trials` finished ones.

        Raises:
            ValueError: a trial was ended by a signal, or none finished.
        """
        drive(pool, self._trainings(trials), self._finish)
        if not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            raise InputError(f"no trial came to its end: the first one says, {last_lines(self.folder / 'trial0')}")

    def _trainings(self, trials: int) -> Iterator[Training]:
        for unfinished in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            yield from self._training(Trial(self.study, unfinished._trial_id))
        while len(self.study.trials) < trials:
            # Seeded by the trial's number: a sweep that was interrupted asks what it would have asked.
            number = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = optuna.samplers.TPESampler(seed=number)
            yield from self._training(self.study.ask())

    def _training(self, trial: Trial) -> Iterator[Training]:
        values = [f"--{option.name}={option.suggest(trial)}" for option in self.space]
        folder = (self.folder / f"trial{trial.number}").absolute()
        folder.mkdir(exist_ok=True)
        training = Training(folder.name, folder, (*self.arguments, *values, "--skip_test=true"))
        self.trials[training] = trial
        if training.complete:  # it ended when the sweep was gone
            self._finish(training, 0)
        else:
            yield training

    def _finish(self, training: Training, code: int) -> None:
        trial = self.trials[training]
        values = ", ".join(f"{name} {shown(value)}" for name, value in trial.params.items())
        if code == 0:
            validation = read_json(training.folder / "metrics.json")["validation"]
            self.study.tell(trial, validation["best"])
            print(f"{training.name}: {validation['monitor']} {validation['best']:.4f}, {values}", flush=True)
        elif code in (1, 2):
            self.study.tell(trial, state=TrialState.FAIL)
            print(f"{training.name}: failed, {values}: {last_lines(training.folder)}", flush=True)
        else:
            number = -code if code < 0 else code - 128
            name = signal.Signals(number).name if number in set(signal.Signals) else f"code {code}"
            raise InputError(f"{training.folder} was ended by {name}; the same command resumes it from its checkpoint")


def shown(value: object) -> str:
    """A value of an option, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
