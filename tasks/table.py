"""`msssm table`: complete runs of one profile, gathered into table.md, table.csv and plots."""

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from scipy import stats

from tasks.plots import accuracy_plot, learning_curves_plot

REFERENCE = Path(__file__).parent / "reference"
FULL_SCALE = {"min_length": 500, "max_length": 2000, "max_depth": 10, "max_args": 10, "train_size": 96_000}


@dataclass(frozen=True)
class Run:
    """One complete run: its row, its folder, what it measured (`metrics.json`) and its resolved recipe."""

    row: str
    folder: Path
    metrics: dict[str, Any]
    recipe: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Test accuracy in percent."""
        return 100 * self.metrics["test"]["test/accuracy"]

    @property
    def data(self) -> dict[str, Any]:
        return self.recipe["data"]["init_args"]

    @property
    def full_scale(self) -> bool:
        """Whether the data are Long Range Arena's, not a reduced variant."""
        return all(self.data[key] == value for key, value in FULL_SCALE.items())

    def budget(self) -> dict[str, Any]:
        """What the runs of one table have in common: the data, and how much of it a training sees."""
        return {
            "data digest": self.metrics["data"]["digest"][:12],
            "steps": self.metrics["steps"],
            "batch size": self.data["batch_size"],
        }


@dataclass(frozen=True)
class Row:
    """The runs of one model, and the paper's number for it where there is one."""

    label: str
    runs: list[Run]
    paper: str = ""

    @property
    def accuracy(self) -> float:
        return mean(run.accuracy for run in self.runs)

    def interval(self) -> tuple[float, float]:
        """95 %, in percent: over test samples (Wilson) for one seed, over seeds (Student) for several."""
        return confidence_interval([run.accuracy for run in self.runs], self.runs[0].metrics["data"]["counts"]["test"])


def confidence_interval(accuracies: Sequence[float], test_size: int) -> tuple[float, float]:
    """A 95 % interval of the accuracy, in percent.

    One value: Wilson's interval of a proportion over `test_size` independent samples; what another seed would give
    is not in it. Several values: Student's interval of the mean over seeds.
    """
    if len(accuracies) == 1:
        correct = round(accuracies[0] / 100 * test_size)
        low, high = stats.binomtest(correct, test_size).proportion_ci(0.95, method="wilson")
        return 100 * low, 100 * high
    half = stats.t.ppf(0.975, len(accuracies) - 1) * stdev(accuracies) / len(accuracies) ** 0.5
    return max(0.0, mean(accuracies) - half), min(100.0, mean(accuracies) + half)


def read_runs(folder: Path) -> list[Run]:
    """All complete runs below `<folder>/runs/listops/<row>/seed<k>`.

    Raises:
        ValueError: there is none, one cannot be read, or they differ in what a table holds equal.
    """
    runs = []
    for path in sorted(folder.glob("runs/listops/*/seed*/metrics.json")):
        try:
            metrics = json.loads(path.read_text())
            recipe = yaml.safe_load((path.parent / "config.yaml").read_text())
            runs.append(Run(path.parent.parent.name, path.parent, metrics, recipe))
            runs[-1].budget()
        except (ValueError, KeyError, TypeError, yaml.YAMLError, OSError) as error:
            raise ValueError(f"the run {path.parent} is damaged ({error!r}); delete it and train it again") from error
    if not runs:
        raise ValueError(f"no complete run below {folder}/runs/listops; run `make reproduce-table` first")
    for run in runs:
        if run.budget() != runs[0].budget():
            raise ValueError(
                f"runs of one table must agree in {', '.join(runs[0].budget())}; {run.folder} has {run.budget()}, "
                f"{runs[0].folder} has {runs[0].budget()}: delete the one of the older recipe"
            )
    return runs


def group(runs: list[Run]) -> tuple[list[Row], list[str]]:
    """Rows in the order of the reference table, rows of our own after them; and the reference rows that lack a run."""
    with (REFERENCE / "listops.csv").open() as file:
        reference = {line["row"]: line for line in csv.DictReader(file)}
    names = [*reference, *dict.fromkeys(run.row for run in runs if run.row not in reference)]
    by_name = {name: [run for run in runs if run.row == name] for name in names}
    rows = [
        Row(
            reference[name]["label"] if name in reference else name,
            chosen,
            reference[name]["paper_accuracy"] if name in reference else "",
        )
        for name, chosen in by_name.items()
        if chosen
    ]
    comparison = any(by_name[name] for name in reference)
    return rows, [line["label"] for name, line in reference.items() if comparison and not by_name[name]]


def markdown(rows: list[Row], missing: list[str]) -> str:
    """The table and what it takes to read it."""
    first = rows[0].runs[0]
    full = first.full_scale
    data, counts = first.metrics["data"], first.metrics["data"]["counts"]
    header = [
        "model",
        f"ours: accuracy on {'LRA' if full else 'short'} ListOps, %",
        "95 % interval",
        "min .. max",
        "seeds",
        "parameters",
        "training, s",
        "paper: accuracy on full LRA ListOps, %",
    ]
    cells = [_cells(row) for row in sorted(rows, key=lambda row: -row.accuracy)]
    bound = f"{100 * data['root_operator_accuracy']:.1f}"
    cells.append(["root operator alone (bound)", bound, *[""] * 6])
    lines = [
        f"# {'ListOps' if full else 'Short ListOps (reduced scale)'}: ours beside the paper's",
        "",
        f"Data: {counts['train']:,} / {counts['val']:,} / {counts['test']:,} samples, "
        f"{first.data['min_length']} < length < {first.data['max_length']}, depth at most {first.data['max_depth']}, "
        f"at most {first.data['max_args']} arguments, mean length {data['mean_length']['train']:.0f}, "
        f"digest {data['digest'][:12]}.",
        f"Training: {first.metrics['steps']:,} steps of {first.data['batch_size']} samples; tested once, at the best "
        "validation.",
        "",
        *_aligned([header, *cells]),
        "",
        "Interval: over the test samples where there is one seed (another seed may differ by more), over seeds "
        "(Student) where there are several. The bound is the best answer per root operator, which needs no nesting."
        + ("" if full else " The paper's column is another, longer task: not comparable in value."),
        _provenance([run for row in rows for run in row.runs]),
    ]
    if missing:
        lines.append(f"Partial table, not yet run: {'; '.join(missing)}.")
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    low, high = row.interval()
    accuracies = [run.accuracy for run in row.runs]
    return [
        row.label,
        f"{row.accuracy:.1f}",
        f"{low:.1f} .. {high:.1f}",
        f"{min(accuracies):.1f} .. {max(accuracies):.1f}" if len(accuracies) > 1 else "",
        str(len(row.runs)),
        f"{row.runs[0].metrics['parameters']:,}",
        f"{mean(run.metrics['train_seconds'] for run in row.runs):.0f}",
        row.paper,
    ]


def _aligned(cells: list[list[str]]) -> list[str]:
    """A Markdown table that also reads well as plain text: labels left, numbers right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = [("-" * width if place == 0 else "-" * (width - 1) + ":") for place, width in enumerate(widths)]
    padded = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in [cells[0], rule, *cells[1:]]
    ]
    return [f"| {' | '.join(line)} |" for line in padded]


def _provenance(runs: list[Run]) -> str:
    """Commit, versions and hardware; each stated once, with all its values."""

    def values(key: Any) -> str:
        return ", ".join(sorted({key(run.metrics) for run in runs}))

    commit = values(lambda m: (m["commit"] or "no commit")[:12] + (" with uncommitted changes" if m["dirty"] else ""))
    torch = values(lambda m: m["versions"]["torch"])
    hardware = values(
        lambda m: (
            " + ".join(m["hardware"]["gpus"])
            or f"{m['hardware']['processor']}, {m['hardware']['threads']} thread(s) per run"
        )
    )
    return f"Commit {commit}; torch {torch}; {hardware}. Each run's provenance is in table.csv."


def write_csv(path: Path, rows: list[Row]) -> None:
    """One line per run, with its provenance."""
    lines = [_line(row, run) for row in rows for run in row.runs]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0].keys())
        writer.writeheader()
        writer.writerows(lines)


def _line(row: Row, run: Run) -> dict[str, Any]:
    metrics, hardware = run.metrics, run.metrics["hardware"]
    return {
        "row": run.row,
        "label": row.label,
        "seed": metrics["seed"],
        "best_validation": f"{100 * metrics['validation']['best']:.3f}",
        "test_accuracy": f"{run.accuracy:.3f}",
        "test_size": metrics["data"]["counts"]["test"],
        "paper_accuracy": row.paper,
        "full_scale": run.full_scale,
        "parameters": metrics["parameters"],
        "steps": metrics["steps"],
        "batch_size": run.data["batch_size"],
        "processes": metrics["processes"],
        "precision": metrics["precision"],
        "train_seconds": f"{metrics['train_seconds']:.1f}",
        "data_digest": metrics["data"]["digest"],
        "commit": metrics["commit"],
        "dirty": metrics["dirty"],
        **metrics["versions"],
        "processor": hardware["processor"],
        "threads": hardware["threads"],
        "gpus": " + ".join(hardware["gpus"]),
        "config": Path(*run.folder.parts[-4:]) / "config.yaml",
    }


def main(args: list[str]) -> None:
    """Prints the table of one results folder and writes table.md, table.csv, accuracy.png, learning_curves.png."""
    parser = argparse.ArgumentParser(prog="msssm table", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="for example results/quick")
    folder = parser.parse_args(args).folder
    runs = read_runs(folder)
    rows, missing = group(runs)
    title = "ListOps" if runs[0].full_scale else "Short ListOps (reduced scale)"
    text = markdown(rows, missing)
    (folder / "table.md").write_text(text)
    write_csv(folder / "table.csv", rows)
    accuracy_plot(
        folder / "accuracy.png",
        title,
        [(row.label, row.accuracy, row.interval()) for row in sorted(rows, key=lambda row: row.accuracy)],
        100 * runs[0].metrics["data"]["root_operator_accuracy"],
    )
    curves = {row.label: [run.folder for run in row.runs] for row in rows}
    learning_curves_plot(folder / "learning_curves.png", title, curves)
    print(text)
