"""Calibration of probabilities, thresholds on them, and the scores of both, as pure functions of arrays."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.metrics import precision_recall_curve

BINS = 10

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


def platt(target: Array, logit: Array) -> tuple[float, float]:
    """Fits slope (not negative) and intercept of the logistic regression of `target` on `logit`, both (n,).

    The targets are (N+ + 1) / (N+ + 2) and 1 / (N- + 2), which keep a class that is separated perfectly from certainty
    (Platt 1999, "Probabilistic outputs for support vector machines").
    """
    positives = target.sum()
    negatives = len(target) - positives
    soft = np.where(target > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(parameters: Floats) -> tuple[float, Floats]:
        z = parameters[0] * logit + parameters[1]
        error = expit(z) - soft
        return float(np.mean(np.logaddexp(0, z) - soft * z)), np.array([np.mean(error * logit), np.mean(error)])

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, bounds=[(0, None), (None, None)]).x
    return float(slope), float(intercept)


def best_f1_threshold(target: Array, probability: Array) -> float:
    """Finds the probability from which on calling a sample positive has the highest F1; (n,) both, with a positive."""
    precision, recall, thresholds = precision_recall_curve(target, probability)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    return float(thresholds[np.argmax(f1[:-1])])


def at_threshold(target: Array, probability: Array, threshold: float) -> dict[str, float | None]:
    """Computes sensitivity, specificity and precision of `probability >= threshold`, (n,) both; None for 0 / 0."""
    called, positive = probability >= threshold, target > 0
    right = int((called & positive).sum())

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return {
        "sensitivity": share(right, int(positive.sum())),
        "specificity": share(int((~called & ~positive).sum()), int((~positive).sum())),
        "precision": share(right, int(called.sum())),
    }


def calibration_error(target: Array, probability: Array) -> float:
    """Computes the expected calibration error over all entries, in `BINS` bins of equal width."""
    target, probability = target.ravel(), probability.ravel()
    index = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(index, probability - target, BINS)
    return float(np.abs(gap).sum() / len(target))


def brier(target: Array, probability: Array) -> float:
    """Mean squared error of the probabilities, over all entries."""
    return float(np.mean((probability - target) ** 2))
