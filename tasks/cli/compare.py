"""`msssm compare A B`: the difference of two runs, or of two rows, on the same test samples, by a paired bootstrap."""

from pathlib import Path
from statistics import mean

import numpy as np

from msssm.errors import InputError
from tasks.cli.parser import CommandParser
from tasks.metrics.bootstrap import RESAMPLES
from tasks.metrics.intervals import student
from tasks.metrics.paired import Comparison, check_comparable, compare
from tasks.paths import path_option
from tasks.run.predictions import FILE, Saved, load

EXAMPLES = """\
msssm compare runs/a runs/b
msssm compare results/small/runs/ptbxl/s4d results/small/runs/ptbxl/mamba"""


def main(args: list[str]) -> None:
    """Says whether one run is better than another on the same test samples, by a paired bootstrap.

    The interval is over test samples (patients, where they are known): it knows nothing of another training seed.
    Of two rows of an experiment, every seed that both have is compared, and the mean has an interval over the seeds.
    """
    parser = CommandParser("compare", main, EXAMPLES)
    what = "folders of two complete runs, A and B, or of two rows with a folder for each seed"
    parser.add_argument("run", type=path_option, nargs=2, metavar="FOLDER", help=what)
    parser.add_argument("--resamples", type=int, default=RESAMPLES, metavar="N", help="of the test samples")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the resamples")
    options = parser.parse_args(args)
    if options.resamples < 1:
        raise InputError(f"--resamples must be at least 1, got {options.resamples}")
    if options.seed < 0:
        raise InputError(f"--seed must be at least 0, got {options.seed}")
    rows = [_seeds(folder) for folder in options.run]
    if not any(rows):
        run, result = _compare(options.run, options.resamples, options.seed)
        _print_head(run, options.resamples)
        _print_runs(options.run, result)
        return
    seeds = sorted(rows[0].keys() & rows[1].keys())
    if not seeds:
        raise InputError(
            f"expected two runs, or two rows with complete runs of the same seeds; {options.run[0]} has seeds "
            f"{sorted(rows[0]) or 'none'}, {options.run[1]} {sorted(rows[1]) or 'none'}"
        )
    found = [_compare([row[seed] for row in rows], options.resamples, options.seed) for seed in seeds]
    _print_head(found[0][0], options.resamples)
    _print_rows(options.run, dict(zip(seeds, (result for _, result in found), strict=True)))


def _seeds(folder: Path) -> dict[int, Path]:
    """Complete runs of a row, by their seeds."""
    runs = (path.parent for path in folder.glob("seed*/metrics.json"))
    return {int(run.name[4:]): run for run in runs if run.name[4:].isdecimal()}


def _compare(folders: list[Path], resamples: int, seed: int) -> tuple[Saved, Comparison]:
    """Run A, and how it compares with run B."""
    a, b = (load(folder / FILE) for folder in folders)
    check_comparable(folders, (a, b))
    return a, compare(a, b, resamples=resamples, seed=seed)


def _print_head(run: Saved, resamples: int) -> None:
    units = f"{len(run.sample):,} samples"
    if run.group is not None:
        units += f" in {len(np.unique(run.group)):,} groups"
    print(f"{run.metric.replace('_', ' ')} on {units}; {resamples:,} paired resamples")


def _print_runs(folders: list[Path], result: Comparison) -> None:
    low, high = result.interval
    width = max(len(str(folder)) for folder in folders)
    print(f"  A  {folders[0]!s:<{width}}  {result.a:.4f}")
    print(f"  B  {folders[1]!s:<{width}}  {result.b:.4f}")
    print(f"  A - B  {result.difference:+.4f}   95 % interval {low:+.4f} .. {high:+.4f}")
    print(f"  A is better in {100 * result.a_better:.1f} % of the resamples")


def _print_rows(folders: list[Path], results: dict[int, Comparison]) -> None:
    print(f"  A  {folders[0]}\n  B  {folders[1]}")
    print("  seed       A       B    A - B   95 % interval")
    for seed, result in results.items():
        low, high = result.interval
        print(f"  {seed:>4}  {result.a:.4f}  {result.b:.4f}  {result.difference:+.4f}   {low:+.4f} .. {high:+.4f}")
    if len(results) > 1:
        a, b, difference = (mean(values) for values in list(zip(*results.values(), strict=True))[:3])
        low, high = student([result.difference for result in results.values()])
        print(f"  mean  {a:.4f}  {b:.4f}  {difference:+.4f}   {low:+.4f} .. {high:+.4f} over seeds (Student)")
