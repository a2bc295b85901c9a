"""Difference of two runs on the same test samples, by a paired bootstrap."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from msssm.errors import InputError, MissingFileError
from tasks.metrics.bootstrap import RESAMPLES, percentile_interval, resample
from tasks.metrics.ecg import macro, weighted_auroc
from tasks.run.predictions import Saved
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


def check_comparable(folders: list[Path], runs: tuple[Saved, Saved]) -> None:
    """Raises ValueError unless both runs were tested on the same samples of the same data with the same metric."""
    a, b = runs
    pairs: list[tuple[str, Any, Any]] = [
        ("metrics", a.metric, b.metric),
        ("data digests", _digest(folders[0]), _digest(folders[1])),
        ("numbers of test samples", len(a.sample), len(b.sample)),
    ]
    for name, ours, theirs in pairs:
        if ours != theirs:
            raise InputError(
                f"{folders[0]} and {folders[1]} have different {name}, {ours} and {theirs}; compare runs of one task "
                "on the same data"
            )
    for name in ("sample", "target", "group"):
        if not np.array_equal(getattr(a, name), getattr(b, name)):
            raise InputError(
                f"{folders[0]} and {folders[1]} differ in the {name}s of their tests; compare runs on the same data"
            )


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
