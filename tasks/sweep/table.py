"""The trials of a sweep, best first, as table.md and table.csv."""

import csv
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import TrialState

from tasks.reports.markdown import table
from tasks.run.provenance import read_json
from tasks.sweep.space import Option
from tasks.sweep.trials import shown
from tasks.table.training import last_lines


def write_table(folder: Path, study: optuna.Study, space: Sequence[Option], monitor: str) -> str:
    """Writes both files, and returns the Markdown."""
    names = [option.name for option in space]
    best_first = sorted(
        study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)),
        key=lambda trial: trial.value or 0.0,
        reverse=study.direction == optuna.study.StudyDirection.MAXIMIZE,
    )
    header = ["trial", monitor, *names, "parameters", "steps", "training, s"]
    rows: list[list[object]] = []
    for trial in best_first:
        metrics = read_json(folder / f"trial{trial.number}" / "metrics.json")
        values = [trial.params[name] for name in names]
        rows.append(
            [trial.number, trial.value, *values, metrics["parameters"], metrics["steps"], metrics["train_seconds"]]
        )
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    best = f"trial{best_first[0].number}"
    lines = [
        f"# {len(rows)} trials by their best {monitor} (validation; no trial was tested)",
        "",
        *table([header, *([shown(value) for value in row] for row in rows)]),
        "",
        *_importances(study, names),
        *(
            f"trial{trial.number} failed: {last_lines(folder / f'trial{trial.number}')}"
            for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        ),
        f"Test the best, once: msssm test --config {folder / best / 'config.yaml'}",
    ]
    text = "\n".join(lines) + "\n"
    (folder / "table.md").write_text(text)
    return text


def _importances(study: optuna.Study, names: Sequence[str]) -> list[str]:
    """Importance of the options by PED-ANOVA (Watanabe et al. 2023), if there are several and trials differ."""
    values = {trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    if len(names) < 2 or len(values) < 2:
        return []
    importances = optuna.importance.get_param_importances(study)
    return ["Importance (PED-ANOVA): " + ", ".join(f"{name} {value:.2f}" for name, value in importances.items()) + "."]
