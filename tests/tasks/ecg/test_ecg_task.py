"""The PTB-XL task through the command line and under two processes: scores, windows, report, dashboard."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from datamodules import ECGBatch, PTBXLDataModule
from msssm import Backbone, MultiScaleSSM
from tasks import ECGTask
from tasks.cli.main import main
from tasks.ecg.recordings.inference import aggregate
from tasks.metrics.ecg import auroc, f_max, macro
from tasks.run.predictions import load
from tests.support.ptbxl import copy_to
from tests.support.tolerances import FLOAT64, GRADIENT, METRIC, assert_near

TINY = [
    "fit",
    "--config=quick/ptbxl/msssm_s6",
    "--data.synthetic=null",
    "--data.batch_size=40",
    "--model.backbone.d_model=4",
    "--model.backbone.n_layers=1",
    "--trainer.enable_model_summary=false",
    "--trainer.max_epochs=1",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run on rhythms, in half-overlapping crops."""
    folder = tmp_path_factory.mktemp("ecg")
    copy_to(folder / "data")
    options = ["--data.label_set=rhythm", "--data.crop=250", "--data.eval_batch_size=7"]
    options += ["--trainer.callbacks+=tasks.run.dashboard.EpochLines"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([*TINY, f"--data.root={folder}/data", f"--run_dir={folder}/run", *options])
    (folder / "run/printed.txt").write_text(printed.getvalue())
    return folder / "run"


def _metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def _task(label_set: str = "rhythm", aggregation: Any = "mean") -> ECGTask:
    torch.manual_seed(0)
    layer = lambda d: MultiScaleSSM(d, levels=1, kernel_size=2, state_size=2)  # noqa: E731
    return ECGTask(Backbone(layer, d_model=4, n_layers=1), label_set, aggregation=aggregation).eval()


def test_scores_are_those_of_the_saved_predictions(run: Path) -> None:
    metrics, saved = _metrics(run), load(run / "predictions.npz")
    data = PTBXLDataModule(root=str(run.parent / "data"), label_set="rhythm", crop=250)
    data.setup("test")
    records = data.records("test")
    assert saved.metric == "macro_auroc"
    assert saved.sample.tolist() == list(range(len(records)))
    np.testing.assert_array_equal(saved.group, records["patient_id"])
    labels = torch.cat([batch.y for batch in data.test_dataloader()]).numpy()
    np.testing.assert_array_equal(saved.target, labels)
    report = metrics["report"]
    per_class = auroc(saved.target, saved.prediction)
    assert metrics["test"]["test/auroc"] == pytest.approx(macro(per_class), abs=METRIC)
    assert report["auroc"] == pytest.approx(macro(per_class), abs=FLOAT64)
    assert metrics["test"]["test/f_max"] == pytest.approx(f_max(saved.target, saved.prediction), abs=METRIC)
    assert metrics["test"]["test/auroc_classes"] == report["auroc_classes"] == 6 == len(report["auroc_per_class"])
    assert report["auroc_per_class"]["AFIB"] == pytest.approx(per_class[data.classes.index("AFIB")])
    assert report["positives"]["AFLT"] == 0 < report["positives"]["AFIB"]
    for unit in ("records", "patients"):
        low, high = report["interval_95"][unit]["auroc"]
        assert low < report["auroc"] < high
    assert report["patients"] < report["records"] == len(records)
    assert report["interval_95"]["records"]["auroc"] != report["interval_95"]["patients"]["auroc"]
    assert metrics["validation"]["monitor"] == "val/auroc"


def test_a_record_is_scored_by_all_of_its_windows(run: Path) -> None:
    """The saved logit is that of the mean probability of seven windows."""
    task = ECGTask.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True).eval()
    data = PTBXLDataModule(root=str(run.parent / "data"), label_set="rhythm", crop=250, eval_batch_size=100)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert len(batch.x) == 7 * len(batch.y)
    with torch.no_grad():
        probability = task(batch.x, batch.lengths).double().sigmoid().unflatten(0, (-1, 7)).mean(1)
    saved = load(run / "predictions.npz")
    np.testing.assert_allclose(1 / (1 + np.exp(-saved.prediction.astype(float))), probability, atol=METRIC)


def test_windows_are_aggregated_by_probability() -> None:
    logits = torch.randn(3, 5, 4, dtype=torch.float64) * 3
    assert_near(aggregate(logits, "mean").sigmoid(), logits.sigmoid().mean(1), FLOAT64)
    assert_near(aggregate(logits, "max").sigmoid(), logits.sigmoid().amax(1), FLOAT64)
    assert torch.equal(aggregate(logits[:, :1], "mean"), logits[:, 0])
    large = torch.tensor([[[90.0], [60.0]]])  # both probabilities are 1 in float32
    assert aggregate(large, "mean").item() == pytest.approx(60 + np.log(2), abs=GRADIENT[torch.float32])


def test_tensorboard_has_classes_and_pictures(run: Path) -> None:
    events = EventAccumulator(str(run), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"val_auroc/AFIB", "val_auroc/SR", "val/auroc", "val/f_max"} <= set(tags["scalars"])
    assert {tag for tag in tags["scalars"] if tag.startswith("val/")} == _task().validation_metrics().keys()
    assert "val_auroc/AFLT" not in tags["scalars"], "no record has it"
    assert set(tags["images"]) == {f"ecg/{name}" for name in ("roc", "calibration", "examples", "confusion", "mixer")}
    assert len(events.Images("ecg/roc")) == 1
    (charts,) = events.Tensors("custom_scalars__config__")
    assert b"val/auroc" in charts.tensor_proto.string_val[0]


def test_the_line_of_a_validation_shows_what_selects_the_run(run: Path) -> None:
    best = _metrics(run)["validation"]["best"]
    assert f"val/auroc {best:.3f}" in (run / "printed.txt").read_text()


def test_it_is_diagnosed_and_exported(run: Path, tmp_path: Path) -> None:
    """Windows of signals, and the run's own numbers in its model card."""
    main(["diagnose", "--run_dir", str(run), "--samples=2"])
    result = json.loads((run / "diagnostics.json").read_text())
    assert result["network"] == "ECGTask"
    assert result["lengths"] == [250, 250]
    assert len(result["layers"]) == 1
    main(["export", "--run_dir", str(run), "--output", f"{tmp_path}/out"])
    card = (tmp_path / "out/README.md").read_text()
    assert f"test/auroc: {_metrics(run)['test']['test/auroc']:.4f}" in card


def test_the_label_sets_of_data_and_model_must_agree(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*TINY, f"--data.root={run.parent}/data", f"--run_dir={tmp_path}/run", "--model.label_set=form"])
    assert "the model's label_set 'form' has 19 classes, the data's 'all' has 71" in capsys.readouterr().err


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"asked for label_set='some', aggregation='mean'; choose one of all, diag"):
        _task("some")
    with pytest.raises(ValueError, match=r"aggregation='median'; choose one of .*'mean' or 'max'"):
        _task(aggregation="median")


def _batches(task: ECGTask, size: int) -> list[ECGBatch]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2 * size, 20, 12, generator=generator)
    y = (torch.rand(size, 12, generator=generator) < 0.3).float()
    y[torch.arange(size), torch.arange(size) % 12] = 1
    return [ECGBatch(x[2 * i : 2 * i + 2], y[i : i + 1], torch.full((2,), 20), torch.tensor([i])) for i in range(size)]


def _scores(task: ECGTask, batches: list[ECGBatch]) -> dict[str, float]:
    logged: dict[str, float] = {}
    task.log = lambda name, value, **_: logged.update({name: float(value)})  # type: ignore[method-assign]
    task.on_test_start()
    with torch.no_grad():
        for index, batch in enumerate(batches):
            task.test_step(batch, index)
    task.on_test_epoch_end()
    del logged["test/loss"]  # of the last batch
    return logged


def _rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meeting")
    task = _task(aggregation="max")
    batches = _batches(task, 31)
    scores = _scores(task, batches[:10] if rank else batches[10:])
    predictions: list[Tensor] = list(task.test_predictions.compute())
    torch.save((scores, predictions), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_what_one_does(tmp_path: Path) -> None:
    """21 records on one, 10 on the other; the same scores on both."""
    mp.spawn(_rank, (tmp_path,), nprocs=2)
    task = _task(aggregation="max")
    expected = _scores(task, _batches(task, 31))
    assert set(expected) == {"test/auroc", "test/auroc_classes", "test/f_max"}
    for rank in range(2):
        scores, predictions = torch.load(tmp_path / f"{rank}.pt")
        assert scores == pytest.approx(expected, abs=METRIC)
        for ours, theirs in zip(task.test_predictions.compute(), predictions, strict=True):
            torch.testing.assert_close(ours, theirs, atol=METRIC, rtol=0)
