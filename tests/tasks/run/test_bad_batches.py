"""What a training does about numbers that are not finite, or leap."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks import ListOpsTask, SkipBadBatches
from tests.support.recipes import fit, write_recipe
from tests.support.runs import curve

BAD = {4, 11}  # steps


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, torch.Tensor]]]:
    """Poisons the inner states of some batches; returns the (step, weights and statistics) at the start of each."""
    seen: list[tuple[int, dict[str, torch.Tensor]]] = []
    original = ListOpsTask.training_step

    def training_step(self: ListOpsTask, batch: Any, batch_idx: int) -> Any:
        seen.append((self.global_step, {name: value.clone() for name, value in self.state_dict().items()}))
        if self.global_step not in BAD:
            return original(self, batch, batch_idx)
        norms = [m for m in self.modules() if hasattr(m, "running_mean")]
        assert norms, "the recipe normalises by batch statistics, which a bad batch spoils"
        for norm in norms:
            norm.running_mean.fill_(math.nan)  # type: ignore[union-attr,operator]
        return original(self, batch, batch_idx) * math.nan

    monkeypatch.setattr(ListOpsTask, "training_step", training_step)
    return seen


def test_bad_batches_are_skipped_and_counted(
    poisoned: list[tuple[int, dict[str, torch.Tensor]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(write_recipe(tmp_path), "--trainer.callbacks+=tasks.SkipBadBatches", "--trainer.callbacks.limit=2")
    assert [step for step, _ in poisoned] == list(range(20))
    for step in range(19):
        before, after = poisoned[step][1], poisoned[step + 1][1]
        unchanged = all(torch.equal(before[name], after[name]) for name in before)
        assert unchanged == (step in BAD)
    assert "the gradients of step 11 are not finite: batch skipped, 2 so far" in capsys.readouterr().err
    assert [point for point in curve(tmp_path / "runs/seed0")["train/skipped_batches"] if point[0] in (3, 5, 19)] == [
        (3, 0.0),
        (5, 1.0),
        (19, 2.0),
    ]


def test_more_bad_batches_than_the_limit_end_the_run(
    poisoned: list[tuple[int, dict[str, torch.Tensor]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        fit(write_recipe(tmp_path), "--trainer.callbacks+=tasks.SkipBadBatches", "--trainer.callbacks.limit=1")
    assert "2 so far, more than limit=1; look at the data" in capsys.readouterr().err
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        SkipBadBatches(0)


def _break(band: int) -> Any:
    original = ListOpsTask.training_step

    def training_step(self: ListOpsTask, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 14:
            with torch.no_grad():
                next(p for n, p in self.named_parameters() if n.endswith("ssm.delta_bias"))[band] = math.nan
        return original(self, batch, batch_idx)

    return training_step


def test_a_bad_loss_names_layer_band_and_step_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ListOpsTask, "training_step", _break(1))
    with pytest.raises(SystemExit, match="2"):
        fit(write_recipe(tmp_path))
    error = capsys.readouterr().err.splitlines()[-1]
    last = tmp_path / "runs/seed0/checkpoints/last.ckpt"
    assert "the training loss is nan at step 14: layer model.backbone.blocks.0.layer (MultiScaleSSM): band 1" in error
    assert error.endswith(f"{last} is from before")
    weights = torch.load(last, weights_only=True)
    assert weights["global_step"] == 10
    assert all(torch.isfinite(value).all() for value in weights["state_dict"].values())


@pytest.mark.parametrize(
    ("stage", "name", "step", "end"),
    [
        ("validate", "validation", 10, "last.ckpt is from before"),
        ("test", "test", 20, "look at head and labels"),
    ],
)
def test_an_evaluation_that_alone_is_not_finite_ends_the_run(
    stage: str,
    name: str,
    step: int,
    end: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As batch norm can: its running statistics serve evaluations alone."""
    forward = ListOpsTask.forward

    def failing(self: ListOpsTask, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        return forward(self, x, lengths) * (math.nan if self.trainer.state.stage == stage else 1.0)

    monkeypatch.setattr(ListOpsTask, "forward", failing)
    with pytest.raises(SystemExit, match="2"):
        fit(write_recipe(tmp_path))
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"the {name} loss is nan at step {step}: " in error
    assert error.endswith(end)
    assert not (tmp_path / "runs/seed0/metrics.json").exists()


def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They come about in the last step of an epoch, so no loss has shown it yet, and no validation fails over it."""

    def on_validation_epoch_end(self: ListOpsTask) -> None:
        with torch.no_grad():
            next(self.model.head.parameters())[0] = math.nan

    monkeypatch.setattr(ListOpsTask, "on_validation_epoch_end", on_validation_epoch_end)
    with pytest.raises(SystemExit, match="2"):
        fit(write_recipe(tmp_path))
    assert "model.head.weight is not finite at step 10 (1 of the weights); not saved" in capsys.readouterr().err
    assert torch.load(tmp_path / "runs/seed0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 9
