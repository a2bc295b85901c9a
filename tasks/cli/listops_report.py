"""`msssm listops-report`: accuracy of ListOps models by kind, on a large fresh test set and beyond trained lengths."""

import argparse
from pathlib import Path

import pandas as pd

from datamodules import ListOpsDataModule
from msssm.errors import InputError
from tasks.cli.load import LoadedRun, load_run, run_arguments
from tasks.cli.parser import CommandParser
from tasks.listops.report import report, write
from tasks.listops.task import ListOpsTask
from tasks.paths import path_option
from tasks.table.collect import find_table, read_runs

FILE = "listops_report.csv"
EXAMPLES = """
msssm listops-report --run_dir runs/mine
msssm listops-report --results results/quick
"""


def main(args: list[str]) -> None:
    """Breaks the accuracy of ListOps runs down by root operator, depth and length, on fresh expressions.

    The expressions are of the run's own distribution, from another seed and without any of the training set. Then the
    same trees at lengths of 1 to 2 and 2 to 4 times the longest trained. Writes listops_report.csv, .md and .png into
    the folder of the run, or with --results of all runs, side by side, and prints the table.
    """
    parser = CommandParser("listops-report", main, EXAMPLES)
    run_arguments(parser)
    parser.add_argument(
        "--count", type=int, default=20_000, metavar="N", help="expressions; a tenth of it for each longer range"
    )
    parser.add_argument(
        "--results", type=path_option, metavar="FOLDER", help="all complete runs below it, in place of one run"
    )
    options, overrides = parser.parse_known_args(args)
    if options.count < 10:
        raise InputError(f"--count must be at least 10, got {options.count}")
    if options.results is None:
        run = load_run(options, overrides)
        print(write(run.folder, _report(run, options.count).assign(model="this run", seed=0)))
        return
    runs = read_runs(options.results, "listops")
    if not runs:
        raise InputError(f"no complete ListOps run below {options.results}/runs; run `make reproduce-table` first")
    labels = {name: row.label for name, row in find_table(options.results, runs, "listops").rows.items()}
    reports = []
    for each in runs:
        lines = _kept(each.folder, options.count)
        if lines is None:
            print(each.folder, flush=True)
            one = argparse.Namespace(run_dir=each.folder, config=None, ckpt_path=None)
            lines = _report(load_run(one, overrides), options.count)
            lines.to_csv(each.folder / FILE, index=False)
        reports.append(lines.assign(model=labels.get(each.row, each.row), row=each.row, seed=each.metrics["seed"]))
    print(write(options.results, pd.concat(reports)))


def _report(run: LoadedRun, count: int) -> pd.DataFrame:
    if not (isinstance(run.datamodule, ListOpsDataModule) and isinstance(run.task, ListOpsTask)):
        raise InputError(f"asked for a ListOps run, got {type(run.task).__name__} on {type(run.datamodule).__name__}")
    return report(run.task, run.datamodule, count)


def _kept(folder: Path, count: int) -> pd.DataFrame | None:
    """An earlier report on this many expressions, of the run's present checkpoint."""
    path, checkpoint = folder / FILE, folder / "checkpoints/best.ckpt"
    if not path.exists() or (checkpoint.exists() and checkpoint.stat().st_mtime > path.stat().st_mtime):
        return None
    lines = pd.read_csv(path, dtype={"name": str})
    return lines if lines["count"][0] == count else None
