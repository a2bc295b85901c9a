"""Difference of a row to the one that its table compares with, such as the `full` of the ablations."""

from statistics import mean
from typing import NamedTuple

from tasks.metrics.intervals import student
from tasks.metrics.paired import check_comparable, compare
from tasks.run.predictions import FILE, load
from tasks.table.benchmarks import Benchmark
from tasks.table.runs import Run


class Difference(NamedTuple):
    """Difference of a row to the one that it is compared with, and its 95 % interval."""

    value: float
    low: float
    high: float


def difference(benchmark: Benchmark, runs: list[Run], base: list[Run]) -> Difference | None:
    """Paired difference: by seed (Student) if two or more seeds are in both rows, else over test samples (bootstrap).

    None if the rows have no seed in common.
    """
    by_seed = {run.metrics["seed"]: run for run in base}
    pairs = [(run, by_seed[run.metrics["seed"]]) for run in runs if run.metrics["seed"] in by_seed]
    if not pairs:
        return None
    if len(pairs) == 1:
        folders = [run.folder for run in pairs[0]]
        ours, theirs = (load(folder / FILE) for folder in folders)
        check_comparable(folders, (ours, theirs))
        found = compare(ours, theirs)
        return Difference(found.difference, *found.interval)
    values = [benchmark.value(run) - benchmark.value(other) for run, other in pairs]
    return Difference(mean(values), *student(values))
