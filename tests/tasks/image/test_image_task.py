"""The image task through the command line, on real digits; its figures; its averaged weights."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from datamodules import Batch, DigitsDataModule
from msssm import Backbone, MultiScaleSSM
from tasks import ImageTask
from tasks.cli.main import main
from tasks.image.dashboard import _Errors, as_images, confusion_figure, errors_figure
from tasks.run.predictions import load
from tests.support.image_recipe import write_image_recipe
from tests.support.tolerances import FLOAT32, FLOAT64, METRIC, assert_near

EMA = ["--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay=0.9"]


def fit(recipe: Path, *options: str) -> None:
    main(["fit", "--config", str(recipe), *options])


def task(**options: Any) -> ImageTask:
    torch.manual_seed(0)
    backbone = Backbone(partial(MultiScaleSSM, levels=2, kernel_size=2, state_size=2), 8, 1)
    return ImageTask(backbone, **{"image_size": 8, "in_channels": 1, **options})


def digits() -> DigitsDataModule:
    data = DigitsDataModule(eval_batch_size=90)
    data.prepare_data()
    data.setup("test")
    return data


@torch.no_grad()
def answers(model: ImageTask) -> tuple[Tensor, Tensor]:
    """Logits and labels of the test digits, in their order, without Lightning."""
    data = digits()
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    logits = torch.cat([model.eval()(batch.x) for batch in batches])
    return logits, torch.cat([batch.y for batch in batches])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    fit(write_image_recipe(folder, max_epochs=4))
    return folder / "run"


def test_a_run_records_what_its_checkpoint_answers(run: Path) -> None:
    """Accuracy, top-5, classes, confusions and the answers themselves, recomputed by hand."""
    metrics = json.loads((run / "metrics.json").read_text())
    model = ImageTask.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True)
    logits, y = answers(model)
    prediction = logits.argmax(-1)
    right = (prediction == y).double()
    assert right.mean() > 0.5, "four epochs must have taught it something, or the rest says little"
    assert metrics["test"]["test/accuracy"] == pytest.approx(right.mean().item(), abs=METRIC)
    in_five = (logits.topk(5).indices == y.unsqueeze(1)).any(1).double().mean().item()
    assert metrics["test"]["test/accuracy_top5"] == pytest.approx(in_five, abs=METRIC)
    assert metrics["test"]["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=FLOAT32)

    report = metrics["report"]
    assert report["accuracy_top5"] == metrics["test"]["test/accuracy_top5"]
    confusion = np.zeros((10, 10), dtype=int)
    np.add.at(confusion, (y.numpy(), prediction.numpy()), 1)
    assert np.array_equal(report["confusion"], confusion)
    assert report["accuracy_per_class"] == pytest.approx([right[y == c].mean().item() for c in range(10)])
    assert report["parameters"] == sum(p.numel() for p in model.parameters()) == metrics["parameters"]
    # 4 epochs cannot have taken longer than the training as a whole.
    trained = 4 * 1197 / report["train_images_per_second"]
    assert 0.1 * metrics["train_seconds"] < trained < metrics["train_seconds"]

    saved = load(run / "predictions.npz")
    assert saved.metric == "accuracy"
    assert np.array_equal(saved.sample, np.arange(400))
    assert np.array_equal(saved.target, y.numpy())
    assert np.array_equal(saved.prediction, prediction.numpy())


def test_tensorboard_has_the_curves_and_the_figures(run: Path) -> None:
    events = EventAccumulator(str(run), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"val/confusion", "val/confident_errors"} <= set(tags["images"])
    assert {"train/accuracy", "val/accuracy", "val/accuracy_top5", "val/loss"} <= set(tags["scalars"])
    assert {tag for tag in tags["scalars"] if tag.startswith("val/")} == task().validation_metrics().keys()
    assert "train/accuracy_top5" not in tags["scalars"]
    assert len(events.Images("val/confusion")) == 4


def test_the_most_confident_errors_are_kept(tmp_path: Path) -> None:
    """Over all batches: the callback's own choice against a sort of everything."""
    model, data = task(), digits()
    kept: list[_Errors] = []
    [dashboard] = model_callbacks(model)
    end = dashboard.on_validation_epoch_end
    dashboard.on_validation_epoch_end = lambda *args: (kept.append(dashboard._worst), end(*args))  # type: ignore[func-returns-value]
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[dashboard], enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.validate(model, data, verbose=False)
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    x, y = torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches])
    with torch.no_grad():
        confidence, prediction = model.eval()(x).softmax(-1).max(-1)
    wrong = (prediction != y).nonzero().squeeze(1)
    order = wrong[confidence[wrong].argsort(descending=True)[:16]]
    [worst] = kept
    assert_near(worst.confidence, confidence[order], METRIC)
    assert torch.equal(worst.image, x[order].view(16, 1, 8, 8))
    assert torch.equal(worst.prediction, prediction[order])
    assert torch.equal(worst.target, y[order])


def model_callbacks(model: ImageTask) -> list[Any]:
    """As Lightning asks for them."""
    model.trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    return model.configure_callbacks()


def test_figures_show_what_they_are_given() -> None:
    confusion = torch.tensor([[8, 2, 0], [0, 5, 0], [0, 0, 0]])
    axes = confusion_figure(confusion).axes[0]
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(np.array([[0.8, 0.2, 0], [0, 1, 0], [0, 0, 0]]))
    assert [text.get_text() for text in axes.texts] == ["80", "20", "100"]
    assert "86.7%" in axes.get_title()
    assert not confusion_figure(torch.ones(1000, 1000)).axes[0].texts

    images = torch.arange(5.0).view(5, 1, 1, 1) + torch.rand(5, 3, 4, 4)
    worst = _Errors(images, torch.full((5,), 0.9), torch.tensor([1, 2, 3, 4, 5]), torch.arange(5))
    drawn = [axes for axes in errors_figure(worst).axes if axes.images]
    assert [axes.get_title() for axes in drawn] == [f"{i} called {i + 1}\n90% sure" for i in range(5)]
    shown = np.asarray(drawn[2].images[0].get_array())
    expected = (images[2] - images[2].min()) / (images[2].max() - images[2].min())
    assert_near(torch.as_tensor(shown), expected.permute(1, 2, 0), METRIC)


def test_pixels_become_the_image_again() -> None:
    image = torch.randn(2, 3, 4, 4)
    assert torch.equal(as_images(image.flatten(2).transpose(1, 2), (3, 4, 4)), image)
    assert as_images(image, (3, 4, 4)) is image


def test_soft_labels_and_smoothing_are_the_cross_entropy() -> None:
    model = task(label_smoothing=0.1).eval()
    model.log = model.log_dict = lambda *args, **kwargs: None  # type: ignore[assignment, method-assign]
    x, lengths = torch.randn(4, 64, 1), torch.full((4,), 64)
    soft = torch.rand(4, 10).softmax(-1)
    log_p = model(x).log_softmax(-1)
    expected = -((0.9 * soft + 0.1 / 10) * log_p).sum(1).mean()
    assert model.training_step(Batch(x, soft, lengths), 0).item() == pytest.approx(expected.item(), rel=FLOAT32)
    model.validation_step(Batch(x, soft.argmax(-1), lengths), 0)
    hard = soft.argmax(-1)
    loss, _ = model._loss(Batch(x, hard, lengths), "val")
    assert loss.item() == pytest.approx(-log_p[range(4), hard].mean().item(), rel=FLOAT32), "no smoothing in evaluation"


def test_few_classes_have_no_top5() -> None:
    assert set(task(num_classes=5).val_metrics) == {"val/accuracy"}
    assert set(task(num_classes=6).val_metrics) == {"val/accuracy", "val/accuracy_top5"}


@pytest.mark.parametrize(("batch_size", "accumulate"), [(32, 1), (64, 2)])
def test_the_learning_rate_grows_with_the_samples_of_a_step(tmp_path: Path, batch_size: int, accumulate: int) -> None:
    """By batch x accumulation / base, over the whole schedule, for both groups of parameters."""

    def rates(base_batch_size: int | None) -> list[list[float]]:
        model = task(lr=1e-3, ssm_lr=1e-4, warmup_epochs=0.5, base_batch_size=base_batch_size)
        seen: list[list[float]] = []
        model.on_train_batch_start = lambda *_: seen.append(  # type: ignore[method-assign, assignment]
            [group["lr"] for group in model.trainer.optimizers[0].param_groups]
        )
        trainer = Trainer(
            accelerator="cpu", logger=False, max_epochs=1, limit_train_batches=6, limit_val_batches=0,
            accumulate_grad_batches=accumulate, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(model, DigitsDataModule(batch_size=batch_size))
        return seen

    plain, scaled = rates(None), rates(16)
    assert max(map(max, plain)) > 0
    assert np.array(scaled) == pytest.approx(np.array(plain) * batch_size * accumulate / 16, rel=FLOAT64)


@pytest.mark.slow
def test_averaged_weights_are_what_is_validated_tested_and_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning's own EMA: the best checkpoint, the test of the training and a later test agree on the averages."""
    fit(write_image_recipe(tmp_path, max_epochs=3), *EMA)
    run = tmp_path / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    name = "model.head.weight"
    assert not torch.equal(checkpoint["state_dict"][name], checkpoint["current_model_state"][name])
    averaged = ImageTask.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True)
    logits, y = answers(averaged)
    assert metrics["test"]["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=FLOAT32)
    capsys.readouterr()
    main(["test", "--config", str(run / "config.yaml")])
    printed = [float(number) for number in re.findall(r"test/loss\D*(\d+\.\d+)", capsys.readouterr().out)]
    assert printed == [pytest.approx(metrics["test"]["test/loss"], rel=FLOAT32)]


@pytest.mark.slow
def test_a_resumed_training_with_averages_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its third epoch: both the averages and the raw weights are bit-equal."""
    recipe = write_image_recipe(tmp_path, max_epochs=3)
    fit(recipe, *EMA, f"--run_dir={tmp_path}/whole")
    original = ImageTask.training_step

    def killed(self: ImageTask, batch: Batch, batch_idx: int) -> Tensor:
        if self.current_epoch == 2 and batch_idx == 5:
            raise RuntimeError("killed")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ImageTask, "training_step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        fit(recipe, *EMA, f"--run_dir={tmp_path}/cut")
    monkeypatch.undo()
    fit(recipe, *EMA, f"--run_dir={tmp_path}/cut")
    whole, cut = (torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True) for run in ("whole", "cut"))
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, cut[key][name]) for name, value in whole[key].items()), key


@pytest.mark.slow
def test_a_requeued_training_goes_on_within_its_epoch(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the checkpoint of SLURM's signal, which is newer than that of the last validation; it ends bit-equal."""
    original = ImageTask.on_train_batch_end
    steps: list[int] = []

    def stopped(self: ImageTask, outputs: Any, batch: Batch, batch_idx: int) -> None:
        original(self, outputs, batch, batch_idx)
        steps.append(self.global_step)
        if len(steps) == 25:
            connector = self.trainer._checkpoint_connector  # type: ignore[attr-defined]
            self.trainer.save_checkpoint(connector.hpc_save_path(self.trainer.default_root_dir))
            raise RuntimeError("time limit")

    monkeypatch.setattr(ImageTask, "on_train_batch_end", stopped)
    recipe = write_image_recipe(tmp_path, max_epochs=4)
    with pytest.raises(RuntimeError, match="time limit"):
        fit(recipe)
    fit(recipe)
    assert f"fit from {tmp_path}/run/hpc_ckpt_1.ckpt" in capsys.readouterr().err
    assert steps == list(range(1, 4 * 19 + 1)), "no step is repeated and none left out"
    whole, cut = (torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (run, tmp_path / "run"))
    assert all(torch.equal(value, cut["state_dict"][name]) for name, value in whole["state_dict"].items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"base_batch_size": 0}, "base_batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"image_size": 9, "patch_size": 2}, "9 x 9 pixels does not divide into patches of 2 x 2"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**options)


def test_another_number_of_classes_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_image_recipe(tmp_path, num_classes=7)
    with pytest.raises(SystemExit):
        fit(recipe)
    assert "msssm: the data have 10 classes, the task num_classes=7: set --model.num_classes 10" in (
        capsys.readouterr().err
    )
    with pytest.raises(ValueError, match="the checkpoint has 10 classes, the task num_classes=7"):
        ImageTask.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True, num_classes=7)
