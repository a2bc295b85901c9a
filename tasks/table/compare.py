"""Difference of two runs on the same test samples, by a paired bootstrap."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from msssm.errors import InputError, MissingFileError
from tasks.metrics.bootstrap import RESAMPLES, percentile_interval, resample
from tasks.metrics.ecg import macro, weighted_auroc
from tasks.run.predictions import FILE, Saved, load
from tasks.run.provenance import read_json

Floats = npt.NDArray[np.float64]


class Comparison(NamedTuple):
    """Scores of A and B, A - B with its 95 % interval, and the share of resamples in which A is better (ties half)."""

    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    a_better: float


def compare(a: Saved, b: Saved, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Compares A and B on the same resamples of samples, or of groups if samples have them.

    The interval is about other test samples; it does not include the variation between seeds of training.
    """
    counts = resample(len(a.sample), resamples=resamples, seed=seed, group=a.group)
    everything = np.ones((len(a.sample), 1))
    values = [(_score(run, everything)[0], _score(run, counts)) for run in (a, b)]
    (a_value, a_values), (b_value, b_values) = values
    differences = (a_values - b_values)[~np.isnan(a_values)]  # NaN where no class is left, in both alike
    better = np.mean(differences > 0) + 0.5 * np.mean(differences == 0)
    return Comparison(
        float(a_value), float(b_value), float(a_value - b_value), percentile_interval(differences), float(better)
    )


def compare_runs(a: Path, b: Path, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Compares the runs of two folders.

    Raises:
        InputError: one has no predictions, or they were not tested on the same samples with the same metric.
    """
    runs = load(a / FILE), load(b / FILE)
    pairs = {
        "metrics": (runs[0].metric, runs[1].metric),
        "data digests": (_digest(a), _digest(b)),
        "numbers of test samples": (len(runs[0].sample), len(runs[1].sample)),
    }
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise InputError(
                f"{a} and {b} have different {name}, {ours} and {theirs}; compare runs of one task on the same data"
            )
    for name in ("sample", "target", "group"):
        if not np.array_equal(getattr(runs[0], name), getattr(runs[1], name)):
            raise InputError(f"{a} and {b} differ in the {name}s of their tests; compare runs on the same data")
    return compare(*runs, resamples=resamples, seed=seed)


def _score(run: Saved, counts: Floats) -> Floats:
    """Computes the metric in every resample: counts (n, R) -> (R,)."""
    if run.metric == "accuracy":
        right = (run.target == run.prediction).astype(np.float64)
        return right @ counts / counts.sum(axis=0)
    if run.metric == "macro_auroc":
        return macro(weighted_auroc(run.target, run.prediction, counts))
    raise InputError(
        f"expected the metric accuracy or macro_auroc, got {run.metric!r}; it was saved by another version"
    )


def _digest(folder: Path) -> str:
    path = folder / "metrics.json"
    if not path.is_file():
        raise MissingFileError(f"expected a complete run in {folder}, got no metrics.json; name the folder of one")
    return str(read_json(path).get("data", {}).get("digest", ""))[:12]
