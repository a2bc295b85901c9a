"""`msssm table`: complete runs of one experiment, gathered into table.md, table.csv, table.html and plots."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from msssm.errors import InputError
from tasks.experiments.files import experiment_files
from tasks.experiments.table import Table, read_table
from tasks.paths import path_option
from tasks.reports.table.benchmarks import BENCHMARKS
from tasks.reports.table.entries import entries
from tasks.reports.table.markdown import document
from tasks.reports.table.page import page
from tasks.reports.table.plots import intervals, learning_curves
from tasks.reports.table.provenance import write_csv
from tasks.reports.table.rows import section
from tasks.reports.table.runs import read_runs


def main(args: list[str]) -> None:
    """Prints the table of one results folder and writes it as table.md, table.csv, table.html and plots.

    Labels, order and the paper's numbers are those of the experiment whose rows the runs are.

    Raises:
        ValueError: there is no complete run, one is damaged, or runs of one task do not belong together.
    """
    parser = argparse.ArgumentParser(prog="msssm table", description=__doc__)
    parser.add_argument("folder", type=path_option, help="for example results/quick")
    parser.add_argument(
        "--experiment", metavar="NAME", help="a name or a folder of tables; by default, whose rows there are"
    )
    options = parser.parse_args(args)
    known = [read_table(path) for path in experiment_files(options.experiment)] if options.experiment else []
    write_table(options.folder, known)


def write_table(folder: Path, known: Sequence[Table]) -> None:
    """Prints the table of the runs below a folder, and writes its files.

    Args:
        folder: of the results.
        known: tables of these runs; for other tasks, those that come with msssm are looked through.
    """
    found = [(benchmark, read_runs(folder, benchmark.task)) for benchmark in BENCHMARKS]
    sections = [
        section(benchmark, runs, entries(folder, runs, benchmark.task, known)) for benchmark, runs in found if runs
    ]
    if not sections:
        raise InputError(f"no complete run below {folder}/runs; run `make reproduce-table` first")
    text = document(sections)
    (folder / "table.md").write_text(text)
    write_csv(folder / "table.csv", sections)
    plots = {}
    for each in sections:
        task = each.benchmark.task
        plots[task] = [folder / f"{task}.png", folder / f"{task}_curves.png"]
        intervals(plots[task][0], each)
        learning_curves(plots[task][1], each)
    if (folder / "listops_report.png").exists():
        plots.get("listops", []).append(folder / "listops_report.png")
    (folder / "table.html").write_text(page(sections, plots))
    print(text)
