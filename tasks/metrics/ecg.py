"""Scores of PTB-XL: areas under ROC curves, and the sample-centric F_max, as pure functions of arrays."""

from typing import Any

import numpy as np
import numpy.typing as npt

from msssm.errors import InputError

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


def auroc(target: Array, score: Array) -> Floats:
    """Area under the ROC curve of each class: the probability that a positive scores above a negative, ties one half.

    Args:
        target: (n, K) multi-hot.
        score: (n, K), of any monotone scale.

    Returns:
        (K,), NaN for a class without positives or without negatives.
    """
    return weighted_auroc(target, score, np.ones((len(target), 1)))[:, 0]


def weighted_auroc(target: Array, score: Array, counts: Array) -> Floats:
    """Computes `auroc` of resamples in which sample i occurs counts[i, r] times.

    It is exact: the scores are sorted once, and the negatives below and up to each positive are counted in all
        resamples at
    once.

    Args:
        target: (n, K) multi-hot.
        score: (n, K).
        counts: (n, R).

    Returns:
        (K, R), NaN for a resample without positives or without negatives.

    Raises:
        ValueError: a score is not finite.
    """
    if not np.isfinite(score).all():
        raise InputError("expected finite scores to rank, got NaN or infinity; the model has diverged")
    result = np.full((target.shape[1], counts.shape[1]), np.nan)
    for k, (is_positive, value) in enumerate(zip(target.T.astype(bool), score.T, strict=True)):
        negative = np.flatnonzero(~is_positive)
        negative = negative[np.argsort(value[negative])]
        occurring = np.zeros((len(negative) + 1, counts.shape[1]))
        np.cumsum(counts[negative], axis=0, out=occurring[1:])
        below = np.searchsorted(value[negative], value[is_positive], side="left")
        up_to = np.searchsorted(value[negative], value[is_positive], side="right")
        positives = counts[is_positive].astype(np.float64)
        wins = np.einsum("pr,pr->r", positives, occurring[below] + occurring[up_to]) / 2
        pairs = positives.sum(axis=0) * occurring[-1]
        np.divide(wins, pairs, out=result[k], where=pairs > 0)
    return result


def macro(per_class: Floats) -> Floats:
    """Mean over the classes with positives and negatives, (K,) or (K, R) -> () or (R,); NaN if there is none."""
    valid = ~np.isnan(per_class)
    number = valid.sum(axis=0)
    total = np.where(valid, per_class, 0.0).sum(axis=0)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def f_max(target: Array, score: Array) -> float:
    """Sample-centric F_max (Strodthoff et al. 2021, IEEE JBHI 25:1519), over all thresholds.

        F_max = max_tau 2 P R / (P + R)
        P(tau) = mean over the records with a predicted class of |predicted and true| / |predicted|
        R(tau) = mean over all records of |predicted and true| / |true|,    predicted: score >= tau

    Args:
        target: (n, K) multi-hot; every row has a class.
        score: (n, K), on a scale that the classes share.
    """
    order = np.argsort(-score, axis=1, kind="stable")
    right = np.cumsum(np.take_along_axis(target, order, axis=1), axis=1, dtype=np.float64)
    precision = right / np.arange(1, score.shape[1] + 1)
    recall = right / right[:, -1:]
    # Increase of the sums over records as the threshold passes each (record, class), in the order of their scores.
    passed = np.argsort(-np.take_along_axis(score, order, axis=1), axis=None, kind="stable")
    gain = [np.diff(value, axis=1, prepend=0).ravel()[passed].cumsum() for value in (precision, recall)]
    records = (np.arange(score.size) % score.shape[1] == 0)[passed].cumsum()
    ranked = np.sort(score, axis=None)[::-1]
    last = np.append(ranked[1:] != ranked[:-1], True)  # equal scores pass together
    P, R = gain[0][last] / records[last], gain[1][last] / len(score)
    return float(np.max(np.divide(2 * P * R, P + R, out=np.zeros_like(P), where=P + R > 0)))
