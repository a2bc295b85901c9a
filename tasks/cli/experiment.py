"""`msssm experiment`: the trainings of a table, as many at a time as there is room for, and the table."""

import argparse
import os
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from msssm.errors import InputError
from tasks.cli.parser import CommandParser
from tasks.messages import say
from tasks.paths import path_option
from tasks.table.cluster import place, place_arguments
from tasks.table.collect import GIVEN
from tasks.table.files import experiment_files, tables
from tasks.table.render import write_table
from tasks.table.run import LOG, Training, drive
from tasks.table.spec import Table, read_table, text

LINES = "--trainer.callbacks+=tasks.run.dashboard.EpochLines"
EXAMPLES = """
msssm experiment quick --tasks listops --seeds 0 1 --jobs 2
msssm experiment quick --tasks listops --rows mamba --print_config
msssm experiment paper --tasks ptbxl --data.root data \\
    --cluster slurm --resources gpus_per_node=1
"""
OWN = {"config", "run_dir", "seed_everything", "ckpt_path", "skip_test"}


class Run(NamedTuple):
    """A row with a seed."""

    table: Table
    row: str
    seed: int

    @property
    def name(self) -> str:
        """Name for messages and folders."""
        return f"{self.table.task}/{self.row}/seed{self.seed}"


def main(args: list[str]) -> None:
    """Trains every row of an experiment that is not complete yet, and prints the table.

    Options that are not of this command, such as --data.root FOLDER, are passed on to every `msssm fit`. The same
    command on an interrupted experiment resumes it: unfinished runs from their checkpoints, complete ones as they are.

    Raises:
        InputError: an unknown experiment, task or row, or one that the recipes' classes do not accept.
        SystemExit: with code 1 if a run is not complete at the end; with 130 at Ctrl-C and SIGTERM, after the runs have
            written their checkpoints.
    """
    options, overrides = _parser().parse_known_args(args)
    found = [read_table(path) for path in experiment_files(options.experiment, options.tasks)]
    results = options.results or _results(found[0], options.of)
    if options.of is not None:
        found = [table.of(options.of) for table in found]
    runs = _runs(found, options.rows, options.seeds)
    _check_options(overrides)
    if options.print_config:
        _print_configs(runs, overrides)
        return
    missing = [run for run in runs if not _training(run, results, overrides).complete]
    _check_rows(missing, overrides)
    cores = os.cpu_count() or 1
    here = max(1, cores // max(table.threads or cores for table in found))
    print(f"{len(missing)} of {len(runs)} runs to do; they go to {results}", flush=True)
    start, room = place(options, here, results)
    drive(start, room, (_prepared(run, results, overrides) for run in missing), _report)
    if any((results / "runs").glob("*/*/*/metrics.json")):
        write_table(results, found)
    if left := [run.name for run in runs if not _training(run, results, overrides).complete]:
        say(f"{len(left)} of {len(runs)} runs are not complete: {', '.join(left)}")
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("experiment", main, EXAMPLES)
    names = ", ".join(dict.fromkeys(name.partition("/")[0] for name in tables()))
    parser.add_argument(
        "experiment", metavar="NAME", help=f"one of {names}; or a folder with tables of your own (msssm recipes)"
    )
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="its tables; all by default")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="of the tables; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="those that the tables name by default")
    parser.add_argument("--of", metavar="NAME", help="ablations or choices over the base of another experiment")
    parser.add_argument(
        "--results", type=path_option, metavar="FOLDER", help="of the runs and the table; results/NAME by default"
    )
    parser.add_argument("--print_config", action="store_true", help="print the resolved recipes, and run nothing")
    place_arguments(parser, jobs="by default one per core and thread on this machine, all at once on a cluster")
    return parser


def _results(table: Table, of: str | None) -> Path:
    return Path("results", f"{of}-{table.experiment}" if of else table.experiment)


def _runs(found: list[Table], rows: list[str] | None, seeds: list[int] | None) -> list[Run]:
    """Lists the runs by seed, so that the first complete table comes early."""
    known = list(dict.fromkeys(row for table in found for row in table.rows))
    if unknown := [row for row in rows or [] if row not in known]:
        raise InputError(f"there is no row {unknown[0]!r}; there are {', '.join(known)}")
    if wrong := [seed for seed in seeds or [] if seed < 0]:
        raise InputError(f"a seed is a whole number from 0, got {wrong[0]}")
    asked = dict.fromkeys(seed for table in found for seed in seeds or table.seeds)
    return [
        Run(table, row, seed)
        for seed in asked
        for table in found
        for row in table.rows
        if seed in (seeds or table.seeds) and (rows is None or row in rows)
    ]


def _check_options(overrides: list[str]) -> None:
    given = {word.removeprefix("--").split("=")[0] for word in overrides if word.startswith("--")}
    if own := OWN & given:
        raise InputError(f"--{own.pop()} belongs to the experiment, which sets it for each run; leave it out")


def _check_rows(runs: list[Run], overrides: list[str]) -> None:
    """Parses and builds every row before the first one starts."""
    if not runs:
        return
    from tasks.cli.load import build  # with lightning, which a table that is complete does not need

    built = None
    with TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        for table, row in {(run.table.path, run.row): run[:2] for run in runs}.values():
            path.write_text(text(table.recipe(row)))
            try:
                if built is None or built.again(path, overrides) is None:
                    built = build(path, overrides)
            except InputError as error:
                raise InputError(f"{table.path}, row {row}: {error}") from error


def _print_configs(runs: list[Run], overrides: list[str]) -> None:
    from tasks.cli.training import MsssmCLI

    with TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        for run in runs:
            path.write_text(text(run.table.recipe(run.row)))
            print(f"---\n# {run.table.experiment}/{run.name}", flush=True)
            try:
                MsssmCLI(["fit", "--config", str(path), f"--seed_everything={run.seed}", *overrides, "--print_config"])
            except SystemExit:
                continue


def _training(run: Run, results: Path, overrides: list[str]) -> Training:
    folder = (results / "runs" / run.name).absolute()
    threads = run.table.threads or os.cpu_count() or 1
    silent = run.table.recipe(run.row).get("trainer", {}).get("enable_progress_bar") is False
    return Training(
        name=run.name,
        folder=folder,
        arguments=(
            *("--config", str(folder / "recipe.yaml"), f"--seed_everything={run.seed}", *overrides),
            *(() if silent else (LINES, f"--trainer.callbacks.name={run.name}")),
        ),
        environment=() if "OMP_NUM_THREADS" in os.environ else (("OMP_NUM_THREADS", str(threads)),),
        talks=True,
    )


def _prepared(run: Run, results: Path, overrides: list[str]) -> Training:
    """Creates the run's folder, with the present recipe of its row."""
    training = _training(run, results, overrides)
    training.folder.mkdir(parents=True, exist_ok=True)
    given = f"{GIVEN}{shlex.join(overrides)}\n" if overrides else ""  # which the table says beside its numbers
    (training.folder / "recipe.yaml").write_text(given + text(run.table.recipe(run.row)))
    return training


def _report(training: Training, code: int) -> None:
    if code == 0:
        return
    why = f"exit code {code}" if code > 0 else f"signal {-code}"
    say(f"{training.name} stopped ({why}); the end of {training.folder / LOG}:\n{training.last_lines(5)}")
