"""AUROC against its definition by pairs, F_max against its definition by thresholds."""

import numpy as np
import pytest
from numpy.typing import NDArray
from torchmetrics.functional.classification import multilabel_auroc

from tasks.metrics.ecg import auroc, f_max, macro, weighted_auroc
from tests.support.tolerances import FLOAT64, METRIC

Array = NDArray[np.float64]


def _case(seed: int, n: int = 60, classes: int = 5, levels: int = 7) -> tuple[Array, Array]:
    """Multi-hot targets with at least one class per row, and scores with many ties."""
    rng = np.random.default_rng(seed)
    target = (rng.random((n, classes)) < 0.3).astype(float)
    target[np.arange(n), rng.integers(classes, size=n)] = 1
    return target, rng.integers(levels, size=(n, classes)) + target * rng.integers(3, size=(n, classes))


def _pairs(target: Array, score: Array) -> float:
    positive, negative = score[target == 1][:, None], score[target == 0]
    return float(((positive > negative) + 0.5 * (positive == negative)).mean())


@pytest.mark.parametrize("seed", range(3))
def test_auroc_is_the_share_of_pairs_in_order(seed: int) -> None:
    target, score = _case(seed)
    expected = [_pairs(target[:, k], score[:, k]) for k in range(target.shape[1])]
    np.testing.assert_allclose(auroc(target, score), expected, rtol=FLOAT64)
    assert 0.5 < macro(auroc(target, score)) == pytest.approx(np.mean(expected), rel=FLOAT64)


def test_auroc_agrees_with_torchmetrics_unbinned() -> None:
    import torch

    target, score = _case(5, n=300)
    probability = torch.sigmoid(torch.tensor(score - 4))
    expected = multilabel_auroc(probability, torch.tensor(target).long(), 5, average="none", thresholds=None)
    np.testing.assert_allclose(auroc(target, score), expected.numpy(), atol=METRIC)


def test_a_class_of_one_kind_has_no_auroc_and_leaves_the_macro_alone() -> None:
    target, score = _case(0)
    target[:, 1], target[:, 3] = 0, 1
    per_class = auroc(target, score)
    assert np.isnan(per_class).tolist() == [False, True, False, True, False]
    assert macro(per_class) == pytest.approx(np.mean([per_class[k] for k in (0, 2, 4)]))
    assert np.isnan(macro(np.full(3, np.nan)))


def test_counts_stand_for_repeated_samples() -> None:
    target, score = _case(1)
    counts = np.random.default_rng(0).integers(4, size=(len(target), 20))
    weighted = weighted_auroc(target, score, counts)
    for r in range(20):
        rows = np.repeat(np.arange(len(target)), counts[:, r])
        np.testing.assert_allclose(weighted[:, r], auroc(target[rows], score[rows]), rtol=FLOAT64)


def test_a_resample_that_lost_a_kind_has_no_auroc_there() -> None:
    target, score = np.array([[1.0], [0.0], [0.0]]), np.array([[2.0], [1.0], [3.0]])
    result = weighted_auroc(target, score, np.array([[0, 1, 2], [1, 0, 1], [1, 0, 0]]))
    np.testing.assert_array_equal(result, [[np.nan, np.nan, 1.0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    target, score = _case(0)
    score[0, 0] = bad
    with pytest.raises(ValueError, match=r"expected finite scores to rank, got NaN or infinity"):
        auroc(target, score)


@pytest.mark.parametrize("seed", range(3))
def test_f_max_is_the_best_of_all_thresholds(seed: int) -> None:
    target, score = _case(seed)
    best = 0.0
    for threshold in np.unique(score):
        predicted = score >= threshold
        right = (predicted & (target == 1)).sum(1)
        some = predicted.any(1)
        precision = (right[some] / predicted[some].sum(1)).mean()
        recall = (right / target.sum(1)).mean()
        if precision + recall:
            best = max(best, 2 * precision * recall / (precision + recall))
    assert f_max(target, score) == pytest.approx(best, rel=FLOAT64)
    assert best < 1


def test_f_max_of_a_perfect_score_is_one_and_of_a_constant_that_of_all_classes() -> None:
    target, _ = _case(0)
    assert f_max(target, target) == pytest.approx(1.0)
    share = target.mean()  # the precision of predicting everything; its recall is 1
    assert f_max(target, np.zeros_like(target)) == pytest.approx(2 * share / (1 + share))
