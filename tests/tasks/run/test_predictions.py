"""Predictions of a test: gathered in order, each sample once, kept in a file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.metrics.predictions import Predictions
from tasks.run.predictions import load


def _filled() -> Predictions:
    predictions = Predictions()
    predictions.update(torch.tensor([4, 0]), torch.tensor([40, 0]), torch.tensor([41, 1]))
    predictions.update(torch.tensor([2]), torch.tensor([20]), torch.tensor([21]))
    return predictions


def test_samples_come_back_in_their_order() -> None:
    sample, target, prediction = _filled().compute()
    assert sample.tolist() == [0, 2, 4]
    assert target.tolist() == [0, 20, 40]
    assert prediction.tolist() == [1, 21, 41]


def test_rows_of_logits_move_with_their_sample() -> None:
    predictions = Predictions()
    logits = torch.arange(6.0).reshape(3, 2)
    predictions.update(torch.tensor([2, 0, 1]), logits > 2, logits)
    _, target, prediction = predictions.compute()
    assert prediction.tolist() == [[2, 3], [4, 5], [0, 1]]
    assert torch.equal(target, prediction > 2)


def test_a_sample_counted_twice_is_an_error() -> None:
    predictions = _filled()
    predictions.update(torch.tensor([0]), torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"expected every sample once, got 1 more than once, 0 for one"):
        predictions.compute()


@pytest.mark.parametrize("group", [None, np.array([7, 7, 9])])
def test_a_file_gives_back_what_was_saved(tmp_path: Path, group: np.ndarray | None) -> None:
    _filled().save(tmp_path / "p.npz", "accuracy", group)
    saved = load(tmp_path / "p.npz")
    assert (saved.sample.tolist(), saved.target.tolist(), saved.prediction.tolist()) == (
        [0, 2, 4],
        [0, 20, 40],
        [1, 21, 41],
    )
    assert saved.metric == "accuracy"
    np.testing.assert_array_equal(saved.group, group)
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


def test_a_missing_a_damaged_and_a_foreign_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    with pytest.raises(FileNotFoundError, match=r"expected predictions in .*p.npz, got no such file"):
        load(path)
    _filled().save(path, "accuracy")
    whole = path.read_bytes()
    for content in (whole[:-30], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"p.npz cannot be read as predictions"):
            load(path)
    np.savez(path, other=np.zeros(2))
    with pytest.raises(ValueError, match=r"p.npz cannot be read as predictions"):
        load(path)
    np.savez(path, sample=np.array([{}]), target=np.zeros(1), prediction=np.zeros(1), metric=np.array("accuracy"))
    with pytest.raises(ValueError, match=r"cannot be read as predictions .*allow_pickle"):
        load(path)
