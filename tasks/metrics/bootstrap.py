"""Percentile bootstrap: the variation of a test metric over samples of records, or of patients."""

from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000

Floats = npt.NDArray[np.float64]


def resample(
    samples: int, *, resamples: int = RESAMPLES, seed: int = 0, group: npt.NDArray[Any] | None = None
) -> Floats:
    """Counts of each sample in each resample, (samples, resamples).

    Args:
        samples: n; each resample draws n of them with replacement.
        resamples: R.
        seed: Seed of the draws.
        group: (n,) of each sample, for example its patient; whole groups are then drawn, as many as there are. With one
            sample per group, the result is the same as without.
    """
    # Numbered as they first appear.
    _, first, group_of = np.unique(
        np.arange(samples) if group is None else group, return_index=True, return_inverse=True
    )
    units = len(first)
    place = np.empty(units, dtype=np.int64)
    place[np.argsort(first)] = np.arange(units)
    drawn = np.random.default_rng(seed).integers(units, size=(resamples, units))
    drawn += units * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * units).reshape(resamples, units)
    return counts.T[place[group_of]].astype(np.float64)


def percentile_interval(values: npt.NDArray[np.floating], level: float = 0.95) -> tuple[float, float]:
    """Interval that contains `level` of the resamples' values, without those that are NaN."""
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, (tail, 1 - tail))
    return float(low), float(high)
