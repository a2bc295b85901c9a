"""The ListOps reports of all runs of a results folder, side by side."""

import csv
import math
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib import pyplot as plt

from msssm.errors import InputError
from tasks.reports import style
from tasks.reports.markdown import table
from tasks.run.provenance import read_json
from tasks.table.collect import find_table, read_runs

Rows = dict[str, list[dict[str, Any]]]


def write_summary(folder: Path) -> str:
    """Writes listops_report.md, .csv and .png into `folder` from its runs' reports; returns the Markdown.

    Raises:
        ValueError: there is no complete ListOps run, or reports are on different expressions.
    """
    runs = read_runs(folder, "listops")
    if not runs:
        raise InputError(f"no complete ListOps run below {folder}/runs; run `make reproduce-table` first")
    labels = {name: row.label for name, row in find_table(folder, runs, "listops").rows.items()}
    reports = [(run, read_json(run.folder / "listops_report.json")["lines"]) for run in runs]
    expected = [(line["kind"], line["name"], line["count"]) for line in reports[0][1]]
    seeds: dict[str, list[list[dict[str, Any]]]] = {}
    with (folder / "listops_report.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["row", "seed", *reports[0][1][0]])
        writer.writeheader()
        for run, lines in reports:
            if [(line["kind"], line["name"], line["count"]) for line in lines] != expected:
                raise InputError(
                    f"{run.folder} has a report on other expressions than {runs[0].folder}; delete its "
                    "listops_report.json and run again"
                )
            writer.writerows({"row": run.row, "seed": run.metrics["seed"], **line} for line in lines)
            seeds.setdefault(labels.get(run.row, run.row), []).append(lines)
    averaged = {label: _mean(each) for label, each in seeds.items()}
    ranked = dict(sorted(averaged.items(), key=lambda item: -item[1][0]["accuracy"]))
    text = markdown(ranked, {label: len(each) for label, each in seeds.items()})
    (folder / "listops_report.md").write_text(text)
    plot(folder / "listops_report.png", ranked)
    return text


def _mean(seeds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Lines of one row, with the mean accuracy over its seeds."""
    lines = zip(*seeds, strict=True)
    return [{**same[0], "accuracy": mean(line["accuracy"] for line in same)} for same in lines]


def standard_error(line: dict[str, Any]) -> float:
    """Standard error sqrt(p (1 - p) / n) of an accuracy over independent expressions; seeds are not in it."""
    return math.sqrt(line["accuracy"] * (1 - line["accuracy"]) / line["count"])


def markdown(rows: Rows, seeds: dict[str, int]) -> str:
    """Formats a table per kind of expression, rows in the order of their overall accuracy."""
    first = next(iter(rows.values()))
    parts = [
        "# ListOps: fresh expressions that no run has seen",
        "",
        "Accuracy in % with its standard error over the expressions; of several seeds the mean, with the error of one.",
    ]
    for kind in dict.fromkeys(line["kind"] for line in first):
        places = [place for place, line in enumerate(first) if line["kind"] == kind]
        heads = [f"{first[place]['name']} (n = {first[place]['count']:,})" for place in places]
        parts += ["", f"## {'Over all' if kind == 'all' else kind.capitalize()}", ""]
        cells = [["model", "seeds", *heads]]
        for label, lines in rows.items():
            values = (f"{100 * lines[p]['accuracy']:.1f} +- {100 * standard_error(lines[p]):.1f}" for p in places)
            cells.append([label, str(seeds[label]), *values])
        parts += table(cells)
    return "\n".join(parts) + "\n"


@style.styled
def plot(path: Path, rows: Rows) -> None:
    """Draws one panel per kind of expression, a line per row with standard errors."""
    first = next(iter(rows.values()))
    kinds = list(dict.fromkeys(line["kind"] for line in first if line["kind"] != "all"))
    figure, axes = plt.subplots(1, len(kinds), figsize=(4 * len(kinds), 4.5), sharey=True, layout="constrained")
    for ax, kind in zip(axes, kinds, strict=True):
        names = [line["name"] for line in first if line["kind"] == kind]
        for label, lines in rows.items():
            chosen = [line for line in lines if line["kind"] == kind]
            values = [100 * line["accuracy"] for line in chosen]
            errors = [100 * standard_error(line) for line in chosen]
            ax.errorbar(range(len(names)), values, yerr=errors, marker="o", markersize=4, capsize=2, label=label)
        ax.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
        ax.set_title(kind)
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("accuracy on fresh expressions, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path)
    plt.close(figure)
