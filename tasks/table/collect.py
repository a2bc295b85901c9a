"""Complete runs on disk, `<folder>/runs/<task>/<row>/seed<k>`, gathered into frames: a line per run, a line per row."""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import yaml

from msssm.errors import InputError
from tasks.metrics.intervals import student, wilson
from tasks.run.predictions import FILE
from tasks.run.provenance import read_json
from tasks.table.compare import compare_runs
from tasks.table.files import table_file, tables
from tasks.table.spec import Column, Number, Table, differences, read_table

GIVEN = "# with "  # first line of a run's recipe.yaml where its experiment was given options
# Options that say where a training runs and what it prints, not what comes out.
PLACES = (
    *("plugins", "data.root", "data.source", "data.download", "data.num_workers"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.callbacks", "trainer.enable", "trainer.log"),
)


@dataclass(frozen=True)
class Run:
    """Complete run.

    Attributes:
        row: Row of its table.
        folder: Its folder.
        metrics: Content of its metrics.json.
        recipe: Its resolved recipe.
        given: Options of the command line that change what comes out, such as `--data.short_size 0`.
    """

    row: str
    folder: Path
    metrics: dict[str, Any]
    recipe: dict[str, Any]
    given: str = ""

    @property
    def data(self) -> dict[str, Any]:
        """Options of the data module."""
        options: dict[str, Any] = self.recipe["data"].get("init_args") or {}
        return options

    @property
    def counts(self) -> dict[str, int]:
        """Samples of train, val and test."""
        return self.metrics["data"]["counts"]

    def budget(self) -> dict[str, Any]:
        """Properties that runs of one table have in common: the data, and how much of it a training sees."""
        return {
            "data digest": self.metrics["data"]["digest"][:12],
            "steps": self.metrics["steps"],
            "batch size": self.data.get("batch_size"),
        }

    def fill(self, text: str) -> str:
        """Fills the fields of a column's text.

        Raises:
            InputError: the run has no such entry.
        """
        known = self.metrics | {"data": self.metrics["data"] | self.data}
        fields = json.loads(json.dumps(known), object_hook=lambda node: SimpleNamespace(**node))
        try:
            return text.format(**vars(fields))
        except (AttributeError, KeyError, IndexError, ValueError, TypeError) as error:
            raise InputError(f"the table's text {text!r} cannot be filled from {self.folder}: {error}") from error


def read_runs(folder: Path, task: str) -> list[Run]:
    """Reads all complete runs below `<folder>/runs/<task>`, ordered by name; there may be none.

    Runs without a test (`--skip_test`) are left out.

    Raises:
        InputError: one cannot be read, or they differ in a property that a table holds equal.
    """
    runs = []
    for path in sorted(folder.glob(f"runs/{task}/*/seed*/metrics.json")):
        try:
            metrics = read_json(path)
            if not metrics["test"]:
                continue
            recipe = yaml.safe_load((path.parent / "config.yaml").read_text())
            runs.append(Run(path.parent.parent.name, path.parent, metrics, recipe, _given(path.parent)))
            runs[-1].budget()
        except (InputError, UnicodeDecodeError, KeyError, TypeError, yaml.YAMLError, OSError) as error:
            raise InputError(f"the run {path.parent} is damaged ({error!r}); delete it and train it again") from error
    for run in runs:
        if run.budget() != runs[0].budget():
            raise InputError(
                f"runs of one table must agree in {', '.join(runs[0].budget())}; {run.folder} has {run.budget()}, "
                f"{runs[0].folder} has {runs[0].budget()}: delete the one of the older recipe"
            )
    return runs


def _given(folder: Path) -> str:
    """Options of the command line, without those that say where the training runs."""
    path = folder / "recipe.yaml"
    first = path.read_text().partition("\n")[0] if path.exists() else ""
    options: list[list[str]] = []
    for word in shlex.split(first.removeprefix(GIVEN)) if first.startswith(GIVEN) else []:
        if word.startswith("--") or not options:
            options.append([])
        options[-1].append(word)
    return " ".join(shlex.join(words) for words in options if not words[0].removeprefix("--").startswith(PLACES))


def find_table(folder: Path, runs: Sequence[Run], task: str, known: Sequence[Table] = ()) -> Table:
    """The table of these runs: the one with most of their rows.

    Args:
        folder: Folder of the results, whose name decides where the rows do not: `quick`, `medium-choices`.
        runs: Runs of one task, whose recipes decide where the name does not.
        task: Its name.
        known: Tables that come before those of msssm.
    """
    rows = {run.row for run in runs}
    ours = [read_table(table_file(name)) for name in tables() if name.endswith(f"/{task}")]
    for candidates in ([table for table in known if table.task == task], ours):
        fits = {table.path: len(rows & table.rows.keys()) for table in candidates}
        best = max(
            candidates,
            key=lambda t: (fits[t.path], folder.name.endswith(t.experiment), _alike(t, runs)),
            default=None,
        )
        if best is not None and fits[best.path]:
            return best
    return Table(Path(folder.name, f"{task}.yaml"))


def _alike(table: Table, runs: Sequence[Run]) -> int:
    """Number of options that the first run of one of the table's rows has otherwise than its recipe, negative."""
    run = next((run for run in runs if run.row in table.rows), None)
    return -len(differences(run.recipe, table.recipe(run.row))) if run else -10_000


@dataclass(frozen=True)
class Section:
    """The table of one task.

    Attributes:
        table: Its description.
        first: A run that represents all in statements on the data.
        runs: A line per run, with everything needed to repeat it, in the order of the table's file.
        rows: A line per row, best first; in the order of the table's file where rows are compared with one of them.
        title: Name of the data, and what is reduced.
        clock: Which measure of time all runs have, `cpu_seconds` or `train_seconds`.
        missing: Labels of the rows that have no run yet.
        quoted: The paper's numbers of models that we do not train.
        other: What differs from the paper's, `data` or `networks`; empty if nothing does.
    """

    table: Table
    first: Run
    runs: pd.DataFrame
    rows: pd.DataFrame
    title: str
    clock: str
    missing: list[str]
    quoted: dict[str, str]
    other: str

    @property
    def column(self) -> Column:
        """The table's metric."""
        return self.table.column

    @property
    def compare(self) -> str:
        """Row that the others are shown as differences to; empty if there is none, or it was not run."""
        return self.table.compare if self.table.compare in self.rows.index else ""

    @property
    def lines(self) -> list[Any]:
        """The rows as named tuples."""
        return list(self.rows.itertuples())

    def text(self, name: str) -> str:
        """A text of the column, filled."""
        return self.first.fill(getattr(self.column, name))

    def bounds(self) -> dict[str, str]:
        """Trivial answers and their values."""
        values = {name: float(self.first.fill(str(value))) for name, value in self.column.bound.items()}
        return {name: self.column.show(value) for name, value in values.items()}


def collect(table: Table, runs: Sequence[Run]) -> Section:
    """Gathers the runs of one task, at least one; rows that the table does not know come last."""
    column, first = table.column, runs[0]
    given = sorted({run.given for run in runs})
    shared = given[0] if len(given) == 1 else ""
    order = [*table.rows, *sorted({run.row for run in runs} - table.rows.keys())]
    whole = not column.samples or tuple(first.counts.values()) == column.samples
    full_scale = column.paper != "" and whole and first.fill(column.data) == first.fill(column.paper)
    papers = {name: _paper(table, first, row.paper) for name, row in table.rows.items()}
    title = _title(table, first, "" if whole else f"{_samples(first)} samples", shared)
    frame = pd.DataFrame(
        [
            {
                "task": table.task,
                "row": run.row,
                "label": _label(table, run) + ("" if run.given == shared else f", with {run.given}"),
                "data": title,
                "full_scale": full_scale,
                "paper": papers.get(run.row, ""),
                **_measured(column, run),
            }
            for run in sorted(runs, key=lambda run: order.index(run.row))
        ]
    )
    clock = "cpu_seconds" if frame.cpu_seconds.notna().all() else "train_seconds"
    rows = _rows(table, frame, clock)
    minus = rows[["minus", "minus_low", "minus_high"]]
    return Section(
        table,
        first,
        frame.join(minus, on="row"),
        rows,
        title,
        clock,
        [
            row.label
            for name, row in table.rows.items()
            if name not in rows.index and (papers[name] or not table.compare)
        ],
        {label: text for label, number in table.quoted.items() if (text := _paper(table, first, number))},
        "data" if not full_scale else "networks" if table.reduced or any(given) else "",
    )


def _samples(run: Run) -> str:
    return " / ".join(f"{count:,}" for count in run.counts.values())


def _label(table: Table, run: Run) -> str:
    return table.rows[run.row].label if run.row in table.rows else run.row


def _title(table: Table, run: Run, samples: str, given: str) -> str:
    reduced = f"reduced: {run.fill(table.reduced)}" if table.reduced else ""
    notes = [note for note in (samples, reduced, given and f"with {given}") if note]
    name = run.fill(table.column.data) or table.task
    return f"{name} ({'; '.join(notes)})" if notes else name


def _paper(table: Table, run: Run, number: Number | None) -> str:
    """Formats the paper's number for a row; empty if it has none on these data."""
    if isinstance(number, dict):
        number = number.get(run.fill(table.column.paper_column))
    return "" if number is None else f"{number:.{table.column.paper_digits}f}"


def _measured(column: Column, run: Run) -> dict[str, Any]:
    """What a run measured, and where it comes from."""
    metrics, hardware = run.metrics, run.metrics["hardware"]
    if column.metric not in metrics["test"]:
        has = ", ".join(metrics["test"])
        raise InputError(
            f"the table is of {column.metric}, {run.folder} has measured {has}; name one as column: metric"
        )
    value = float(metrics["test"][column.metric])
    low, high = _interval(column, run, value)
    origins = [*metrics.get("earlier", []), metrics]
    return {
        "seed": metrics["seed"],
        "metric": column.metric,
        "test": value,
        "test_low": low,
        "test_high": high,
        "best_validation": metrics["validation"]["best"],
        "test_size": run.counts["test"],
        "parameters": metrics["parameters"],
        "steps": metrics["steps"],
        "batch_size": run.data.get("batch_size"),
        "processes": metrics["processes"],
        "precision": metrics["precision"],
        "train_seconds": metrics["train_seconds"],
        "cpu_seconds": metrics.get("cpu_seconds"),
        "data_digest": metrics["data"]["digest"],
        "commit": " + ".join(origin["commit"] or "" for origin in origins),
        "dirty": any(origin["dirty"] for origin in origins),
        **metrics["versions"],
        "processor": hardware["processor"],
        "threads": hardware["threads"],
        "gpus": " + ".join(hardware["gpus"]),
        "options": run.given,
        "folder": str(run.folder),
    }


def _interval(column: Column, run: Run, value: float) -> tuple[float, float]:
    """95 % interval of one run; NaN where the table names none."""
    if column.interval == "wilson":
        return wilson(value, run.counts["test"])
    found: Any = run.metrics
    for key in column.interval.split(".") if column.interval else []:
        found = found.get(key, {})
    return (float(found[0]), float(found[1])) if column.interval and found else (math.nan, math.nan)


def _rows(table: Table, runs: pd.DataFrame, clock: str) -> pd.DataFrame:
    column, groups = table.column, runs.groupby("row", sort=False)
    rows = groups.agg(
        label=("label", "first"),
        mean=("test", "mean"),
        low=("test_low", "first"),
        high=("test_high", "first"),
        least=("test", "min"),
        most=("test", "max"),
        seeds=("seed", "size"),
        parameters=("parameters", "first"),
        seconds=(clock, "mean"),
        paper=("paper", "first"),
    ).assign(minus=math.nan, minus_low=math.nan, minus_high=math.nan)
    for name, group in groups:
        if len(group) > 1:
            interval = student(group.test.tolist())
            rows.loc[name, ["low", "high"]] = np.clip(interval, *column.range) if column.range else interval
        if table.compare in groups.groups and name != table.compare:
            rows.loc[name, ["minus", "minus_low", "minus_high"]] = _difference(group, groups.get_group(table.compare))
    return (
        rows
        if table.compare in rows.index
        else rows.sort_values("mean", ascending=column.direction == "lower", kind="stable")
    )


def _difference(ours: pd.DataFrame, base: pd.DataFrame) -> tuple[float, float, float]:
    """Paired difference: by seed (Student) if both rows have two or more seeds, else over test samples (bootstrap).

    NaN where the rows have no seed in common, or their runs have no predictions.
    """
    pairs = ours.merge(base, on="seed")
    if len(pairs) > 1:
        values = (pairs.test_x - pairs.test_y).tolist()
        return mean(values), *student(values)
    folders = [Path(folder) for folder in [*pairs.folder_x, *pairs.folder_y]]
    if not folders or not all((folder / FILE).exists() for folder in folders):
        return math.nan, math.nan, math.nan
    found = compare_runs(folders[0], folders[1])
    return found.difference, *found.interval
