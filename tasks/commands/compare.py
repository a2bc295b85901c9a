"""`msssm compare runA runB`: the difference of two runs on the same test samples, by a paired bootstrap."""

import numpy as np

from msssm.errors import InputError
from tasks.commands.parser import CommandParser
from tasks.metrics.bootstrap import RESAMPLES
from tasks.metrics.paired import check_comparable, compare
from tasks.paths import path_option
from tasks.run.predictions import FILE, load

EXAMPLES = "msssm compare runs/a runs/b"


def main(args: list[str]) -> None:
    """Says whether one run is better than another on the same test samples, by a paired bootstrap.

    The interval is over test samples (patients, where they are known): it knows nothing of another training seed.
    """
    parser = CommandParser("compare", main, EXAMPLES)
    parser.add_argument("run", type=path_option, nargs=2, metavar="RUN", help="folders of two complete runs, A and B")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, metavar="N", help="of the test samples")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the resamples")
    options = parser.parse_args(args)
    if options.resamples < 1:
        raise InputError(f"--resamples must be at least 1, got {options.resamples}")
    if options.seed < 0:
        raise InputError(f"--seed must be at least 0, got {options.seed}")
    a, b = (load(folder / FILE) for folder in options.run)
    check_comparable(options.run, (a, b))
    result = compare(a, b, resamples=options.resamples, seed=options.seed)
    units = f"{len(a.sample):,} samples"
    if a.group is not None:
        units += f" in {len(np.unique(a.group)):,} groups"
    low, high = result.interval
    width = max(len(str(folder)) for folder in options.run)
    print(f"{a.metric.replace('_', ' ')} on {units}; {options.resamples:,} paired resamples")
    print(f"  A  {options.run[0]!s:<{width}}  {result.a:.4f}")
    print(f"  B  {options.run[1]!s:<{width}}  {result.b:.4f}")
    print(f"  A - B  {result.difference:+.4f}   95 % interval {low:+.4f} .. {high:+.4f}")
    print(f"  A is better in {100 * result.a_better:.1f} % of the resamples")
