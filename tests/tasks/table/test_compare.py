"""`msssm compare`: paired differences against theory, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.cli.main import main
from tasks.metrics.ecg import auroc
from tasks.metrics.predictions import Predictions
from tasks.run.predictions import Saved, Score, load
from tasks.table.compare import compare
from tests.support.tolerances import FLOAT64, allowed

Array = np.ndarray


def _saved(target: Array, prediction: Array, metric: str = "accuracy", group: Array | None = None) -> Saved:
    return Saved(np.arange(len(target)), target, prediction, metric, group)


def _run(folder: Path, prediction: Array, target: Array, metric: Score = "accuracy", digest: str = "d" * 64) -> Path:
    folder.mkdir()
    predictions = Predictions()
    predictions.update(torch.arange(len(target)), torch.tensor(target), torch.tensor(prediction))
    predictions.save(folder / "predictions.npz", metric)
    (folder / "metrics.json").write_text(json.dumps({"data": {"digest": digest}}))
    return folder


def test_the_interval_of_a_paired_difference_is_the_normal_one() -> None:
    """Of n = 1,000 samples 80 are right in A alone, 50 in B alone: its variance is (0.08 + 0.05 - d^2) / n."""
    target = np.zeros(1000, dtype=int)
    a, b = np.ones(1000, dtype=int), np.ones(1000, dtype=int)
    a[:680], b[80:730] = 0, 0
    result = compare(_saved(target, a), _saved(target, b), resamples=4000)
    half = 1.96 * ((0.13 - 0.03**2) / 1000) ** 0.5
    assert (result.a, result.b, result.difference) == pytest.approx((0.68, 0.65, 0.03))
    assert result.interval == pytest.approx((0.03 - half, 0.03 + half), abs=allowed(0.1 * half, "4,000 resamples"))
    unpaired = 1.96 * ((0.68 * 0.32 + 0.65 * 0.35) / 1000) ** 0.5
    assert result.interval[1] - result.interval[0] < 2 * 0.7 * unpaired
    assert result.a_better == pytest.approx(
        0.9958, abs=allowed(0.006, "6 standard errors of 4,000 resamples")
    )  # Phi(0.03 / standard error)


def test_a_run_equals_itself() -> None:
    rng = np.random.default_rng(0)
    run = _saved(rng.integers(2, size=50), rng.integers(2, size=50))
    assert compare(run, run)[2:] == (0.0, (0.0, 0.0), 0.5)


def test_aurocs_are_compared_over_patients() -> None:
    rng = np.random.default_rng(0)
    target = (rng.random((60, 4)) < 0.4).astype(float)
    a, b = (target + scale * rng.standard_normal((60, 4)) for scale in (0.6, 1.0))
    alone = compare(_saved(target, a, "macro_auroc"), _saved(target, b, "macro_auroc"))
    assert alone.difference == pytest.approx(auroc(target, a).mean() - auroc(target, b).mean(), abs=FLOAT64)
    assert alone.difference > 0 < alone.interval[0]
    patients = np.tile(np.arange(60), 3)
    copies = [_saved(np.tile(target, (3, 1)), np.tile(score, (3, 1)), "macro_auroc", patients) for score in (a, b)]
    assert compare(*copies).interval == pytest.approx(alone.interval, abs=FLOAT64)


def test_two_runs_are_printed_as_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = np.arange(40) % 3
    good, bad = target.copy(), target.copy()
    good[:4], bad[:10] = 9, 9
    a, b = _run(tmp_path / "a", good, target), _run(tmp_path / "b", bad, target)
    main(["compare", str(a), str(b)])
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == ["accuracy on 40 samples; 1,000 paired resamples", f"  A  {a}", f"  B  {b}"]
    result = compare(load(a / "predictions.npz"), load(b / "predictions.npz"))
    assert out[4].split()[:3] == ["0.9000", "0.7500", "+0.1500"]
    assert "{:+.4f} .. {:+.4f}".format(*result.interval) in out[4]
    assert out[4].endswith(f"{100 * result.a_better:.1f} % of the resamples")
    assert result.a_better > 0.99


def test_rows_are_compared_seed_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The seeds that both have; their mean with Student's interval, 0.15 -+ 12.706 x 0.05 over two."""
    target = np.arange(40) % 3
    for row, wrong in (("a", (4, 2, 0, 0)), ("b", (8, 10, 6))):
        (tmp_path / row).mkdir()
        for seed, count in enumerate(wrong):
            prediction = target.copy()
            prediction[:count] = 9
            _run(tmp_path / row / f"seed{seed}", prediction, target)
    (tmp_path / "b/seed2/metrics.json").unlink()  # not complete
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in out[4:]] == [
        ["0", "0.9000", "0.8000", "+0.1000"],
        ["1", "0.9500", "0.7500", "+0.2000"],
        ["mean", "0.9250", "0.7750", "+0.1500"],
    ]
    assert out[-1].endswith("-0.4853 .. +0.7853  over seeds (Student)")


def test_rows_without_a_seed_in_common_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = np.arange(6)
    for name in ("a/seed0", "b/seed1", "c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        _run(tmp_path / name, target, target)
    for other, has in (("b", "1"), ("c", "none")):
        with pytest.raises(SystemExit):
            main(["compare", str(tmp_path / "a"), str(tmp_path / other)])
        assert f"a has seeds 0, {tmp_path / other} {has}" in capsys.readouterr().err


def test_runs_on_other_samples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = np.arange(6)
    a = _run(tmp_path / "a", target, target)
    others = {
        "different data digests, dddddddddddd and eeeeeeeeeeee": _run(tmp_path / "b", target, target, digest="e" * 64),
        "different numbers of test samples, 6 and 5": _run(tmp_path / "c", target[:5], target[:5]),
        "differ in the targets of their tests": _run(tmp_path / "d", target, target[::-1].copy()),
        "different metrics, accuracy and macro_auroc": _run(tmp_path / "e", target, target, "macro_auroc"),
        "got no such file; a complete run of msssm fit writes it": tmp_path / "none",
    }
    for message, other in others.items():
        with pytest.raises(SystemExit):
            main(["compare", str(a), str(other)])
        assert message in capsys.readouterr().err
    (a / "metrics.json").unlink()
    with pytest.raises(SystemExit):
        main(["compare", str(a), str(a)])
    assert "expected a complete run in" in capsys.readouterr().err
