"""A sweep: Optuna suggests options of a recipe, and each trial is an `msssm fit` that is validated and never tested."""

import fcntl
import math
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from matplotlib import pyplot as plt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import Trial, TrialState
from optuna.visualization import matplotlib as plots

from msssm.errors import InputError
from tasks.paths import make_folder
from tasks.reports.markdown import table
from tasks.run.provenance import read_json
from tasks.table.run import Start, Training, drive

Space = Mapping[str, BaseDistribution]


def parse(text: str) -> tuple[str, BaseDistribution]:
    """Reads one --vary: the name of an option, and its values.

    Raises:
        InputError: it is not understood.
    """
    name, _, values = text.removeprefix("--").partition("=")
    if "," in values:
        return name, CategoricalDistribution([word.strip() for word in values.split(",")])
    log = values.startswith("log:")
    try:
        low, high = values.removeprefix("log:").split("..")
        if all(re.fullmatch(r"\s*-?\d+\s*", word) for word in (low, high)):
            return name, IntDistribution(int(low), int(high), log=log)
        if not math.isfinite(float(high) - float(low)):
            raise ValueError
        return name, FloatDistribution(float(low), float(high), log=log)
    except ValueError as error:
        wanted = "a range low..high, log:low..high with low above 0, or a choice a,b,c"
        raise InputError(f"--vary {text}: expected OPTION= and {wanted}, as in model.lr=log:1e-4..1e-2") from error


def extremes(values: BaseDistribution) -> tuple[Any, ...]:
    """The values that a recipe must accept before anything runs."""
    if isinstance(values, IntDistribution | FloatDistribution):
        return values.low, values.high
    return values.choices if isinstance(values, CategoricalDistribution) else ()


@contextmanager
def open_study(folder: Path, question: dict[str, str], mode: Literal["min", "max"]) -> Iterator[optuna.Study]:
    """The study of a sweep, new or as it was left, which one sweep holds at a time.

    Args:
        folder: Folder of the sweep.
        question: Recipe and options, which stay as they are.
        mode: Which is better.

    Raises:
        InputError: another sweep is at work in the folder, or its study is of another question.
    """
    make_folder(folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{folder} is in use by another sweep, or by a trial that it left; wait until it has ended"
            raise InputError(message) from error
        os.set_inheritable(lock.fileno(), True)  # a trial that outlives a killed sweep holds it too
        study = optuna.create_study(
            study_name="sweep",
            storage=f"sqlite:///{folder.absolute()}/study.db",
            direction="maximize" if mode == "max" else "minimize",
            load_if_exists=True,
        )
        asked = study.user_attrs.get("question", question)
        if changed := sorted(key for key in question.keys() | asked.keys() if question.get(key) != asked.get(key)):
            raise InputError(
                f"{folder} holds a sweep that differs in: {', '.join(changed)}; choose another --results or delete it"
            )
        study.set_user_attr("question", question)
        yield study


def search(
    study: optuna.Study, space: Space, folder: Path, arguments: Sequence[str], count: int, start: Start, room: int
) -> None:
    """Runs trials until the study has enough.

    A trial whose `msssm fit` ends with an error has failed, which a search must survive: a learning rate that diverges
    ends so. One that a signal ended is unfinished, and is taken up again by the next sweep.

    Args:
        study: Study that suggests the values, and keeps them.
        space: Options that are varied.
        folder: Folder of the trials, `trial<k>`.
        arguments: Arguments of every `msssm fit`.
        count: Trials of the whole study.
        start: Starts a training.
        room: Trials at a time.

    Raises:
        InputError: a trial was ended by a signal, or none finished.
    """
    trials: dict[Training, Trial] = {}

    def training(trial: Trial) -> Training:
        values = [f"--{name}={value}" for name, value in trial.params.items()]
        path = (folder / f"trial{trial.number}").absolute()
        path.mkdir(exist_ok=True)
        described = Training(path.name, path, (*arguments, *values, "--skip_test=true"))
        trials[described] = trial
        return described

    def trainings() -> Iterator[Training]:
        for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            yield training(Trial(study, left._trial_id))
        while (number := len(study.get_trials(deepcopy=False))) < count:
            # Seeded by the trial's number: a sweep that was interrupted asks what it would have asked.
            study.sampler = optuna.samplers.TPESampler(seed=number)
            yield training(study.ask(dict(space)))

    def finish(ended: Training, code: int) -> None:
        trial = trials[ended]
        values = ", ".join(f"{name} {shown(value)}" for name, value in trial.params.items())
        if code == 0:
            metrics = read_json(ended.folder / "metrics.json")
            for name in ("parameters", "steps", "train_seconds"):
                trial.set_user_attr(name, metrics[name])
            study.tell(trial, metrics["validation"]["best"])
            print(f"{ended.name}: {metrics['validation']['monitor']} {metrics['validation']['best']:.4f}, {values}")
        elif code in (1, 2):
            trial.set_user_attr("failed", ended.last_lines())
            study.tell(trial, state=TrialState.FAIL)
            print(f"{ended.name}: failed, {values}: {ended.last_lines()}")
        else:
            number = -code if code < 0 else code - 128
            name = signal.Signals(number).name if number in set(signal.Signals) else f"code {code}"
            raise InputError(f"{ended.folder} was ended by {name}; the same command resumes it from its checkpoint")

    drive(start, room, trainings(), finish)
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        said = study.trials[0].user_attrs.get("failed")
        raise InputError(f"no trial came to its end: the first one says, {said}")


def write_table(folder: Path, study: optuna.Study, monitor: str) -> str:
    """Writes the trials, best first, as table.md and table.csv, and Optuna's plots; returns the Markdown."""
    frame = study.trials_dataframe(attrs=("number", "value", "params", "user_attrs", "state"))
    frame.columns = [name.removeprefix("params_").removeprefix("user_attrs_") for name in frame.columns]
    frame = frame.rename(columns={"number": "trial", "value": monitor})
    complete = frame[frame.state == "COMPLETE"].drop(columns=["state", "failed"], errors="ignore")
    complete = complete.sort_values(monitor, ascending=study.direction == optuna.study.StudyDirection.MINIMIZE)
    complete.to_csv(folder / "table.csv", index=False)
    rows = [[shown(value) for value in row] for row in complete.astype(object).to_numpy().tolist()]
    failed = frame[frame.state == "FAIL"]
    lines = [
        f"# {len(rows)} trials by their best {monitor} (validation; no trial was tested)",
        "",
        *table([list(complete.columns), *rows]),
        "",
        *(f"trial{trial} failed: {why}" for trial, why in zip(failed.trial, failed.get("failed", ()), strict=True)),
        f"Test the best, once: msssm test --config {folder / f'trial{study.best_trial.number}' / 'config.yaml'}",
    ]
    text = "\n".join(lines) + "\n"
    (folder / "table.md").write_text(text)
    drawn: dict[str, Callable[[optuna.Study], Any]]
    drawn = {"history": plots.plot_optimization_history, "options": plots.plot_slice}
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        for name, draw in drawn.items():
            draw(study)
            plt.savefig(folder / f"{name}.png")
            plt.close()
    return text


def shown(value: object) -> str:
    """A value of an option, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
