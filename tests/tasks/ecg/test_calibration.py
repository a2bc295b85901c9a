"""Calibration and thresholds: what is known of them in closed form, and by exhaustion."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import f1_score

from tasks.ecg.calibration import at_threshold, best_f1_threshold, brier, calibration_error, platt
from tests.support.tolerances import FLOAT64, allowed

SOLVER = allowed(1e-3, "where the minimisation stops")


def test_platt_finds_the_line_that_labels_were_drawn_from() -> None:
    generator = np.random.default_rng(0)
    logit = generator.normal(size=200_000)
    target = generator.random(len(logit)) < expit(2 * logit - 1)
    assert platt(target, logit) == pytest.approx((2, -1), abs=allowed(0.03, "3 standard errors of 200,000 labels"))


def test_platt_leaves_the_mean_of_its_targets_and_no_certainty_in_a_separated_class() -> None:
    """The intercept's gradient is 0: predictions add up to Platt's own targets, which stop short of 0 and 1."""
    target, logit = np.array([0, 0, 0, 0, 1, 1]), np.array([-9.0, -8, -7, -6, 6, 7])
    slope, intercept = platt(target, logit)
    probability = expit(slope * logit + intercept)
    assert probability.sum() == pytest.approx(2 * 3 / 4 + 4 * 1 / 6, abs=SOLVER)
    assert 0.05 < probability.min() < probability.max() < 0.95


def test_a_misleading_logit_gets_no_slope() -> None:
    target, logit = np.array([1, 1, 0, 0] * 10), np.array([-1.0, -2, 1, 2] * 10)
    slope, intercept = platt(target, logit)
    assert slope == 0
    assert expit(intercept) == pytest.approx(0.5, abs=SOLVER)


def test_the_threshold_has_the_best_f1_of_all() -> None:
    generator = np.random.default_rng(1)
    for _ in range(5):
        target = generator.random(40) < 0.3
        target[0] = True
        probability = np.round(generator.random(40) / 2 + target * generator.random(40) / 2, 2)  # with ties
        best = max(f1_score(target, probability >= t) for t in np.unique(probability))
        assert f1_score(target, probability >= best_f1_threshold(target, probability)) == pytest.approx(best)


def test_rates_at_a_threshold_by_hand() -> None:
    target, probability = np.array([1, 1, 1, 0, 0]), np.array([0.9, 0.5, 0.1, 0.5, 0.4])
    assert at_threshold(target, probability, 0.5) == {"sensitivity": 2 / 3, "specificity": 1 / 2, "precision": 2 / 3}
    assert at_threshold(target, probability, 0.95) == {"sensitivity": 0, "specificity": 1, "precision": None}


def test_errors_of_probabilities_by_hand() -> None:
    """Bins [.2, .3) and [.9, 1]: |.25 - 2/4| for four entries, |1 - 1| for one."""
    target, probability = np.array([[1, 0, 1, 0, 1]]), np.array([[0.25, 0.25, 0.25, 0.25, 1.0]])
    assert calibration_error(target, probability) == pytest.approx(0.25 * 4 / 5, abs=FLOAT64)
    assert brier(target, probability) == pytest.approx((2 * 0.75**2 + 2 * 0.25**2) / 5, abs=FLOAT64)
