"""The percentile bootstrap: against theory where there is one, and over patients."""

import numpy as np
import pytest

from tasks.metrics.bootstrap import percentile_interval, resample
from tasks.metrics.ecg import auroc, macro, weighted_auroc
from tests.support.tolerances import FLOAT64, allowed


def _width(interval: tuple[float, float]) -> float:
    return interval[1] - interval[0]


def test_each_resample_draws_as_many_samples_as_there_are() -> None:
    counts = resample(50, resamples=400)
    assert counts.shape == (50, 400)
    assert (counts.sum(0) == 50).all()
    # A count is Binomial(50, 1/50): variance 0.98; over 20,000 counts its standard error is about 0.014.
    assert counts.var() == pytest.approx(0.98, abs=allowed(0.06, "4 standard errors"))
    np.testing.assert_array_equal(counts, resample(50, resamples=400))
    assert (counts != resample(50, resamples=400, seed=1)).any()


def test_groups_come_whole() -> None:
    group = np.array([7, 3, 7, 9, 3, 1])
    counts = resample(6, resamples=200, group=group)
    assert (counts[0] == counts[2]).all()
    assert (counts[1] == counts[4]).all()
    assert (counts[[0, 1, 3, 5]].sum(0) == 4).all(), "four groups are drawn, for there are four"
    assert (counts[0] != counts[1]).any()


def test_one_record_per_patient_gives_the_interval_of_records() -> None:
    patients = np.random.default_rng(0).permutation(1000)[:80]
    np.testing.assert_array_equal(resample(80, group=patients), resample(80))


def test_the_interval_of_a_proportion_is_the_normal_one() -> None:
    """n = 2,000, p = 0.3: the standard error is sqrt(p q / n)."""
    right = np.arange(2000) < 600
    low, high = percentile_interval(right @ resample(2000, resamples=4000) / 2000)
    half = 1.96 * (0.3 * 0.7 / 2000) ** 0.5
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=allowed(0.1 * half, "4,000 resamples"))


def test_the_interval_of_an_auroc_covers_the_true_one() -> None:
    """Scores N(1, 1) and N(0, 1): AUROC = Phi(1 / sqrt 2) = 0.7602. 95 % of 200 intervals, give or take three
    standard errors of 1.5 %, contain it."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        target = (np.arange(200) < 60).astype(float)[:, None]
        score = rng.standard_normal((200, 1)) + target
        low, high = percentile_interval(weighted_auroc(target, score, resample(200, resamples=300, seed=trial))[0])
        covered += low <= 0.76025 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_duplicated_records_of_a_patient_widen_the_clustered_interval_alone() -> None:
    """Each of 100 records stands there four times: over records that looks like 400, over patients it is 100."""
    rng = np.random.default_rng(1)
    target = (rng.random((100, 3)) < 0.4).astype(float)
    score = rng.standard_normal((100, 3)) + target
    alone = percentile_interval(macro(weighted_auroc(target, score, resample(100))))
    patients = np.tile(np.arange(100), 4)
    target, score = np.tile(target, (4, 1)), np.tile(score, (4, 1))
    clustered = percentile_interval(macro(weighted_auroc(target, score, resample(400, group=patients))))
    unaware = percentile_interval(macro(weighted_auroc(target, score, resample(400))))
    assert clustered == pytest.approx(alone, abs=FLOAT64)
    assert _width(unaware) == pytest.approx(
        _width(clustered) / 2, rel=allowed(0.15, "the errors of the two quantiles of each")
    ), "four times the records halve it"
    assert unaware[0] < macro(auroc(target, score)) < unaware[1]


def test_resamples_without_a_value_are_left_out() -> None:
    assert percentile_interval(np.array([np.nan, 0.0, 1.0, 2.0, np.nan, 3.0, 4.0]), level=0.5) == (1.0, 3.0)
