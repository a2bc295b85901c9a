"""`msssm table`: complete runs of one experiment, gathered into table.md, table.csv, table.html and plots."""

from collections.abc import Sequence
from pathlib import Path

from msssm.errors import InputError
from tasks.cli.parser import CommandParser
from tasks.paths import path_option
from tasks.table.benchmarks import BENCHMARKS
from tasks.table.entries import entries
from tasks.table.files import experiment_files
from tasks.table.markdown import document
from tasks.table.page import page
from tasks.table.plots import intervals, learning_curves
from tasks.table.provenance import write_csv
from tasks.table.rows import section
from tasks.table.runs import read_runs
from tasks.table.spec import Table, read_table


def main(args: list[str]) -> None:
    """Gathers the complete runs of a results folder into a table: prints it, and writes it with plots beside the runs.

    It writes table.md, table.csv (one line per run, with its provenance), table.html (both, with the plots, on one
    page) and the plots. Labels, order and the paper's numbers are those of the experiment whose rows the runs are.

    Raises:
        ValueError: there is no complete run, one is damaged, or runs of one task do not belong together.
    """
    parser = CommandParser("table", main, "msssm table results/quick")
    parser.add_argument("folder", type=path_option, metavar="RESULTS", help="folder with runs/ in it")
    parser.add_argument(
        "--experiment",
        metavar="NAME",
        help="whose labels and order: an experiment, or a folder of tables of your own; by default that of the rows",
    )
    parser.add_argument("--of", metavar="NAME", help="over whose base they were trained, as of msssm experiment")
    options = parser.parse_args(args)
    known = [read_table(path) for path in experiment_files(options.experiment)] if options.experiment else []
    if options.of and not known:
        raise InputError(f"asked for --of {options.of} without an experiment; name it too: --experiment ablations")
    if options.of:
        tasks = {path.stem for path in experiment_files(options.of)}
        known = [table.of(options.of) for table in known if table.task in tasks]
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
