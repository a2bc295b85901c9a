"""The task of one's own sequences: losses by hand, metrics by numpy, runs from Python and by the command."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from sklearn.metrics import f1_score, r2_score, roc_auc_score
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from datamodules import ArrayDataModule, Batch
from datamodules.arrays.source import Target
from msssm import Backbone, MultiScaleSSM
from msssm.errors import InputError
from tasks import Run, SignalTask
from tasks.cli.main import main
from tasks.run.predictions import load
from tests.support.arrays import write_folder
from tests.support.tolerances import FLOAT32, FLOAT64, METRIC, assert_near

TARGETS: list[Target] = ["class", "labels", "regression", "step"]
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
COLUMNS = {"class": ["label"], "labels": ["high", "large"], "regression": ["level"], "step": ["steps"]}
OUTPUTS = {"class": 2, "labels": 2, "regression": 1, "step": 3}


def network(target: Target, outputs: int, seed: int = 0, **options: Any) -> SignalTask:
    lightning.seed_everything(seed, verbose=False)
    backbone = Backbone(partial(MultiScaleSSM, levels=1, kernel_size=2, state_size=2), d_model=8, n_layers=1)
    return SignalTask(backbone, channels=2, outputs=outputs, target=target, **options)


def parts(folder: Path, target: Target = "class", seed: int = 0, **options: Any) -> tuple[SignalTask, ArrayDataModule]:
    given = {"labels": COLUMNS[target], "target": target, "split_column": "split", "batch_size": 5, **options}
    return network(target, OUTPUTS[target], seed, lr=0.02), ArrayDataModule(str(folder), **given)


def batch_of(target: Target, outputs: int) -> Batch:
    """Four sequences, of which two are padded."""
    draw = torch.Generator().manual_seed(0)
    x, lengths = torch.randn(4, 9, 2, generator=draw, dtype=torch.float64), torch.tensor([9, 5, 9, 2])
    labels: dict[Target, Tensor] = {
        "class": torch.randint(outputs, (4,), generator=draw),
        "labels": torch.randint(2, (4, outputs), generator=draw).double(),
        "regression": 100 + 30 * torch.randn(4, outputs, generator=draw, dtype=torch.float64),
        "step": torch.randint(outputs, (4, 9), generator=draw).masked_fill(torch.arange(9) >= lengths[:, None], -1),
    }
    return Batch(x, labels[target], lengths, torch.arange(4))


def doubled(target: Target) -> SignalTask:
    """In float64, with constants that are not 0 and 1."""
    task = network(target, 3).double().eval()
    task._standardize.take(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5]))
    if target == "regression":
        task._restore.take(torch.tensor([100.0, 90, 80]), torch.tensor([30.0, 20, 10]))
    return task


def loss_of(task: SignalTask, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    return task._step(batch, "train")[0]


@pytest.mark.parametrize("target", TARGETS)
def test_the_loss_is_that_of_the_formula(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each sequence by itself, without padding."""
    task, batch = doubled(target), batch_of(target, 3)
    losses: list[Tensor] = []
    for x, y, length in zip(batch.x, batch.y, batch.lengths, strict=True):
        z = (x[:length] - torch.tensor([1.0, -2.0])) / torch.tensor([3.0, 0.5])
        hidden = task.model.backbone(task.model.encoder[1](z[None]))[0]  # type: ignore[index]
        head = task.model.head[0] if target == "regression" else task.model.head  # type: ignore[index]
        output = head(hidden if target == "step" else hidden.mean(0))
        if target == "class":
            losses.append(-log_softmax(output, -1)[y])
        elif target == "labels":
            losses += [-(y * logsigmoid(output) + (1 - y) * logsigmoid(-output))]
        elif target == "regression":
            losses.append((output - (y - torch.tensor([100.0, 90, 80])) / torch.tensor([30.0, 20, 10])) ** 2)
        else:
            losses += [-log_softmax(row, -1)[label] for row, label in zip(output, y, strict=False)]
    assert_near(loss_of(task, batch, monkeypatch), torch.stack(losses).mean(), FLOAT64)


@pytest.mark.parametrize("target", TARGETS)
def test_what_stands_in_the_padding_reaches_nothing(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = batch_of(target, 3)
    padding = torch.arange(9) >= clean.lengths[:, None]
    spoilt = clean._replace(x=clean.x.masked_fill(padding[..., None], torch.nan))
    found = []
    for batch in (clean, spoilt):
        task = doubled(target)
        loss = loss_of(task, batch, monkeypatch)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in task.parameters() if p.grad is not None)])
    assert len(found[0]) > 5
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("own") / "data")


def expected(task: SignalTask, data: ArrayDataModule) -> dict[str, float]:
    """The test's metrics by numpy and scikit-learn, sequence by sequence."""
    dataset = data.split("test")
    truths, answers = [], []
    for index in range(len(dataset)):
        batch = dataset[[index]]
        with torch.no_grad():
            answers.append(task(batch.x, batch.lengths).numpy()[0])
        truths.append(batch.y.numpy()[0])
    if task.target == "step":
        right = [(answer.argmax(-1) == truth) for answer, truth in zip(answers, truths, strict=True)]
        return {"accuracy": np.concatenate(right).mean()}
    y, output = np.array(truths), np.array(answers)
    if task.target == "regression":
        return {"mae": np.abs(output - y).mean(), "r2": r2_score(y, output)}
    if task.target == "labels":
        return {"auroc": roc_auc_score(y, output, average="macro")}
    return {"accuracy": (output.argmax(-1) == y).mean(), "macro_f1": f1_score(y, output.argmax(-1), average="macro")}


@pytest.mark.parametrize("target", TARGETS)
def test_a_run_from_python_measures_what_numpy_does(folder: Path, target: Target, tmp_path: Path) -> None:
    task, data = parts(folder, target)
    monitor, mode = ("val/mae", "min") if target == "regression" else ("val/loss", "min")
    run = Run(tmp_path, monitor=monitor, mode=mode)  # type: ignore[arg-type]
    metrics = run.fit(run.trainer(max_epochs=2, **QUIET), task, data)
    assert metrics["data"]["digest"] == data.digest
    assert metrics["report"]["names"] == data.names
    assert {f"test/{name}": value for name, value in expected(task.eval(), data).items()} == pytest.approx(
        {name: value for name, value in metrics["test"].items() if name != "test/loss"}, rel=FLOAT32, abs=METRIC
    )
    assert set(task.validation_metrics()) == {name.replace("test", "val") for name in metrics["test"]}
    path = tmp_path / "checkpoints/best.ckpt"
    again = SignalTask.load_from_checkpoint(path, backbone=network(target, 2).model.backbone, weights_only=True)
    assert again.names == data.names
    batch = data.split("test")[[0, 1, 2]]
    assert torch.equal(again.eval()(batch.x, batch.lengths), task(batch.x, batch.lengths))
    assert torch.equal(again._standardize.mean, torch.from_numpy(data.mean))
    if target in ("class", "labels"):
        assert load(tmp_path / "predictions.npz").sample.tolist() == list(range(data.counts()["test"]))


def test_a_label_that_nobody_has_is_not_counted() -> None:
    task = network("labels", 3)
    scores, y = (
        torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.1, 0.2], [0.9, 0.3, 0.1]]),
        torch.tensor([[0, 0, 1], [1, 0, 1], [0, 0, 0]]),
    )
    metric: Any = task.val_metrics["auroc"]
    metric.update(scores, y)
    assert float(metric.compute()) == pytest.approx((0.5 + 1.0) / 2, abs=METRIC)


def test_a_run_that_failed_goes_on_exactly(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an epoch, with crops, augmentation and loader processes."""
    options: dict[str, Any] = {"crop": 15, "noise": 0.1, "mask": 4, "shift": 3, "num_workers": 1}
    whole, cut = (Run(tmp_path / name) for name in ("whole", "cut"))
    every: dict[str, Any] = {"max_epochs": 3, "val_check_interval": 2, **QUIET}
    wanted = whole.fit(whole.trainer(**every), *parts(folder, **options))
    step = SignalTask.training_step

    def killed(self: SignalTask, batch: Batch, batch_idx: int) -> Tensor:
        if self.global_step == 7:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(SignalTask, "training_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            cut.fit(cut.trainer(**every), *parts(folder, **options))
    kept = torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] == 7, "three batches of four into the second epoch"
    again = Run(tmp_path / "cut")
    found = again.fit(again.trainer(**every), *parts(folder, seed=1, **options))
    assert (found["test"], found["steps"]) == (wanted["test"], wanted["steps"])
    one, other = (torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(x, other["state_dict"][name]) for name, x in one["state_dict"].items())


SMALL = ["--model.backbone.d_model=8", "--model.backbone.n_layers=1", "--trainer.max_epochs=2"]
SMALL += ["--trainer.accelerator=cpu", "--data.batch_size=6", "--data.split_column=split", "--model.outputs=2"]


def test_the_command_trains_tests_and_predicts_new_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "--config=signals", f"--data.root={folder}", f"--run_dir={tmp_path}/run", *SMALL])
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["data"]["synthetic"] is False
    config = ["--config", f"{tmp_path}/run/config.yaml"]
    main(["test", *config])
    capsys.readouterr()
    new = tmp_path / "new"
    new.mkdir()
    for number, level in enumerate((80, -70, -90, 60)):
        np.save(new / f"{number}.npy", np.stack([np.full(25 + number, level), np.arange(25 + number)], axis=1))
    main(["predict", *config, f"--data.predict_file={new}"])
    assert capsys.readouterr().out.split() == ["high", "low", "low", "high"]
    np.save(new / "4.npy", np.zeros((9, 3)))
    with pytest.raises(SystemExit):
        main(["predict", *config, f"--data.predict_file={new / '4.npy'}"])
    assert "the data have channels=3, the task channels=2: set --model.channels 3" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_measure_what_one_does(folder: Path, tmp_path: Path) -> None:
    """Every test sample once, in the same steps."""
    options = ["--config=signals", f"--data.root={folder}", f"--run_dir={tmp_path}/run", *SMALL]
    words = [sys.executable, "-m", "tasks.cli.main", "fit", *options, "--trainer.devices=2"]
    subprocess.run(words, check=True, capture_output=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    data = ArrayDataModule(str(folder), split_column="split")
    data.setup("test")
    assert metrics["processes"] == 2
    assert metrics["data"]["counts"] == data.counts()
    assert metrics["steps"] == 2 * -(-data.counts()["train"] // 6)
    task = SignalTask.load_from_checkpoint(tmp_path / "run/checkpoints/best.ckpt", weights_only=True).eval()
    for name, value in expected(task, data).items():
        assert metrics["test"][f"test/{name}"] == pytest.approx(value, abs=METRIC)


def test_other_data_than_the_networks_are_refused(folder: Path, tmp_path: Path) -> None:
    _, data = parts(folder)
    with pytest.raises(InputError, match=r"the data have outputs=2, the task outputs=5: set --model.outputs 2"):
        Trainer(logger=False, **QUIET).fit(network("class", 5), data)
    with pytest.raises(InputError, match=r"target=class, the task target=labels"):
        Trainer(logger=False, **QUIET).fit(network("labels", 2), data)
    task, _ = parts(folder)
    saver = Trainer(max_epochs=1, default_root_dir=tmp_path, logger=False, **QUIET)
    saver.fit(task, data)
    table = pd.read_csv(folder / "labels.csv").replace({"label": {"low": "deep"}})
    table.to_csv(folder / "renamed.csv", index=False)
    _, renamed = parts(folder, table="renamed.csv")
    with pytest.raises(InputError, match="the checkpoint is for high, low, the data have deep, high"):
        Trainer(logger=False, **QUIET).test(task, renamed, ckpt_path=saver.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="give at least 1 channel"):
        network("class", 1)
