"""`msssm compare A B`: the difference of two runs, or of two rows, on the same test samples, by a paired bootstrap."""

from pathlib import Path
from statistics import mean

import numpy as np

from msssm.errors import InputError
from tasks.cli.parser import CommandParser
from tasks.metrics.bootstrap import RESAMPLES
from tasks.metrics.intervals import student
from tasks.paths import path_option
from tasks.run.predictions import FILE, load
from tasks.table.compare import compare_runs

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
    pairs = _pairs(*options.run)
    found = {name: compare_runs(a, b, resamples=options.resamples, seed=options.seed) for name, (a, b) in pairs.items()}
    first = load(next(iter(pairs.values()))[0] / FILE)
    groups = "" if first.group is None else f" in {len(np.unique(first.group)):,} groups"
    metric = first.metric.replace("_", " ")
    print(f"{metric} on {len(first.sample):,} samples{groups}; {options.resamples:,} paired resamples")
    print(f"  A  {options.run[0]}\n  B  {options.run[1]}")
    print("  seed       A       B    A - B   95 % interval       A is better")
    for name, each in found.items():
        low, high = each.interval
        numbers = f"{each.a:.4f}  {each.b:.4f}  {each.difference:+.4f}   {low:+.4f} .. {high:+.4f}"
        print(f"  {name:>4}  {numbers}  {100 * each.a_better:.1f} % of the resamples")
    if len(found) > 1:
        a, b, difference = (mean(values) for values in list(zip(*found.values(), strict=True))[:3])
        low, high = student([each.difference for each in found.values()])
        print(f"  mean  {a:.4f}  {b:.4f}  {difference:+.4f}   {low:+.4f} .. {high:+.4f}  over seeds (Student)")


def _pairs(a: Path, b: Path) -> dict[str, tuple[Path, Path]]:
    """The runs to compare by seed; two runs are one pair without a seed's name."""
    runs = [[path.parent for path in folder.glob("seed*/metrics.json")] for folder in (a, b)]
    seeds = [{run.name[4:]: run for run in each if run.name[4:].isdecimal()} for each in runs]
    if not any(seeds):
        return {"": (a, b)}
    shared = sorted(seeds[0].keys() & seeds[1].keys(), key=int)
    if not shared:
        raise InputError(
            f"expected two runs, or two rows with complete runs of the same seeds; {a} has seeds "
            f"{', '.join(seeds[0]) or 'none'}, {b} {', '.join(seeds[1]) or 'none'}"
        )
    return {seed: (seeds[0][seed], seeds[1][seed]) for seed in shared}
