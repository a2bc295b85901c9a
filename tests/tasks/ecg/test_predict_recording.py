"""`msssm predict --record`: from a checkpoint and a file to probabilities, a table and a picture; and in a stream."""

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.ptbxl import LEADS, simulate
from datamodules.ptbxl.labels import class_names
from datamodules.ptbxl.statements import scp_statements
from msssm import Backbone, MultiScaleSSM
from tasks.cli.main import main
from tasks.ecg.paper import RESEARCH, ecg_figure
from tasks.ecg.recordings.inference import Windows, offline, stream
from tasks.ecg.task import ECGTask
from tasks.run.checkpoint_io import DurableCheckpointIO
from tests.support.tolerances import FLOAT32, FLOAT64, allowed, assert_near

CLASSES = class_names("superdiagnostic", scp_statements())
MEAN, STD = -0.02, 0.25
SMALL = {"d_model": 16, "n_layers": 2}
OPTIONS = [
    "--config", "configs/ptbxl.yaml", "--data.label_set", "superdiagnostic",
    *(f"--model.backbone.{key}={value}" for key, value in SMALL.items()),
]  # fmt: skip


def task(aggregation: Any = "mean") -> ECGTask:
    torch.manual_seed(0)
    layer = partial(MultiScaleSSM, levels=3, kernel_size=2, state_size=26)
    return ECGTask(Backbone(layer, **SMALL), "superdiagnostic", aggregation=aggregation).eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    path = tmp_path / "best.ckpt"
    data = {"mean": MEAN, "std": STD, "classes": CLASSES, "sampling_rate": 100}
    state = {"state_dict": task().state_dict(), "PTBXLDataModule": data, "pytorch-lightning_version": "2.6.6"}
    DurableCheckpointIO().save_checkpoint(state, path)
    return str(path)


def record(path: Path, seconds: float = 10, rate: int = 100) -> np.ndarray[Any, Any]:
    """A generated ECG in mV, written as .csv."""
    signal = np.tile(simulate("AFIB", 2, np.random.default_rng(3), rate) / 1000, (3, 1))[: round(seconds * rate)]
    rows = "\n".join(",".join(f"{value:.3f}" for value in row) for row in signal)
    path.write_text(f"# sampling_rate: {rate}\n{','.join(LEADS)}\n{rows}\n")
    return signal


@pytest.mark.parametrize("crop", [None, 250])
def test_the_answer_is_the_model_of_the_standardised_windows(
    tmp_path: Path, checkpoint: str, crop: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against windows that are cut here; no data set is there; table, .json and .csv say the same."""
    signal = record(tmp_path / "mine.csv")
    x = torch.tensor((signal - MEAN) / STD, dtype=torch.float32)
    starts = range(0, 751, 125) if crop else [0]
    with torch.no_grad():
        logits = task()(torch.stack([x[start : start + (crop or 1000)] for start in starts]))
    expected = dict(zip(CLASSES, torch.sigmoid(logits).mean(0).tolist(), strict=True))
    extra = ["--data.crop", str(crop)] if crop else []
    where = ["--record", str(tmp_path / "mine.csv"), "--output", str(tmp_path / "out")]
    main(["predict", *OPTIONS, "--ckpt_path", checkpoint, "--data.root", str(tmp_path / "none"), *where, *extra])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "mine.json").read_text())
    assert found["probabilities"] == pytest.approx(expected, abs=FLOAT32)
    assert list(found["probabilities"]) == sorted(expected, key=lambda name: -expected[name])
    assert found["windows"] == len(starts)
    [row] = csv.DictReader((tmp_path / "out" / "predictions.csv").open())
    assert {name: float(row[name]) for name in CLASSES} == pytest.approx(expected, abs=FLOAT32)
    lines = [line.split() for line in printed.splitlines() if "#" in line]
    assert [line[2] for line in lines] == list(found["probabilities"])
    assert (tmp_path / "out" / "mine.png").stat().st_size > 50_000
    assert RESEARCH in printed


@pytest.mark.parametrize(
    ("windows", "length"),
    [(Windows(None, 1, "mean"), 200), (Windows(80, 40, "mean"), 233), (Windows(80, 19, "max"), 200)],
    ids=["whole", "mean", "max, overlapping four times"],
)
def test_a_stream_ends_at_the_offline_result(windows: Windows, length: int) -> None:
    """And before its end at that of the recording so far, as long as that has as many whole windows."""
    model = task().model
    x = torch.randn(length, 12)
    answers = [logits.clone() for logits in stream(model, x, windows)]
    assert len(answers) == length
    assert_near(answers[-1], offline(model, x, windows), FLOAT32)
    early = (windows.crop or 100) + 2 * windows.stride
    assert_near(answers[early - 1], offline(model, x[:early], windows), FLOAT32)


def test_memory_of_the_offline_run_is_bounded_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = task().model, torch.randn(500, 12)
    whole = [offline(model, x, windows) for windows in (Windows(None, 1, "mean"), Windows(100, 50, "max"))]
    monkeypatch.setattr("tasks.ecg.recordings.inference.POSITIONS", 33)
    monkeypatch.setattr("tasks.ecg.recordings.inference.WINDOWS", 2)
    parts = [offline(model, x, windows) for windows in (Windows(None, 1, "mean"), Windows(100, 50, "max"))]
    for a, b in zip(whole, parts, strict=True):
        assert_near(a, b, FLOAT32)


def test_a_folder_is_predicted_in_spite_of_one_bad_recording(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    record(folder / "a.csv", 30)
    record(folder / "b.csv", 4, 500)
    (folder / "c.csv").write_text("I,II\n1,2\n")
    where = ["--record", str(folder), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main(["predict", *OPTIONS, "--ckpt_path", checkpoint, *where])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "c.csv needs a sampling rate" in error
    assert "2 of 3 recordings were predicted" in error
    assert [row["recording"] for row in csv.DictReader((tmp_path / "out" / "predictions.csv").open())] == ["a", "b"]


def test_remarks_that_do_not_fit_the_picture_are_counted() -> None:
    figure = ecg_figure(np.zeros((1000, 12)), 100, "mine", [f"remark {i}" for i in range(6)], [])
    words = [text.get_text() for text in figure.texts]
    assert [word for word in words if "remark" in word] == ["remark 0", "remark 1", "remark 2", "and 3 more remarks"]


def test_a_checkpoint_of_another_recipe_and_a_short_recording_are_named(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "a.csv", 2)
    where = ["--ckpt_path", checkpoint, "--record", str(tmp_path / "a.csv"), "--output", str(tmp_path / "out")]
    for changed, message in (
        (["--data.crop", "250"], "has 200 samples at the model's rate, fewer than its window of 250"),
        (["--model.backbone.n_layers", "3"], "best.ckpt does not fit the recipe: model.backbone.blocks.2."),
    ):
        with pytest.raises(SystemExit):
            main(["predict", *OPTIONS, *where, *changed])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "shown"), [(10, "10.0 s"), (4, "every lead from 0 s"), (30, "first 10 of 30.0 s")])
def test_the_picture_is_to_scale_and_nothing_overlaps(seconds: int, shown: str) -> None:
    """25 mm/s and 10 mm/mV on the paper itself, with tall complexes; every lead's name stays clear of its row."""
    signal = 3 * np.tile(simulate("SR", 4, np.random.default_rng(0)) / 1000, (3, 1))[: 100 * seconds]
    figure = ecg_figure(signal, 100, "mine", ["a remark"], [("NORM", 0.9)])
    [axes] = figure.axes
    millimetres = axes.get_window_extent().width / figure.dpi * 25.4 / np.diff(axes.get_xlim())[0]
    assert millimetres == pytest.approx(1, abs=allowed(0.01, "a pixel of the figure"))
    traces = [line for line in axes.lines if len(line.get_xdata()) > 10]
    assert len(traces) == 13
    rhythm = np.asarray(traces[-1].get_xdata(), dtype=float)
    assert np.diff(rhythm) == pytest.approx(0.25)
    lead = np.asarray(traces[0].get_ydata(), dtype=float)
    drawn = signal[: len(lead), 0]
    kept = np.abs(drawn - np.median(signal[:, 0])) < 4
    np.testing.assert_allclose(
        np.diff(lead)[kept[1:] & kept[:-1]], 10 * np.diff(drawn)[kept[1:] & kept[:-1]], atol=FLOAT64
    )
    lows = [min(np.min(line.get_ydata()) for line in traces[i : i + 4]) for i in (0, 4, 8)]
    highs = [max(np.max(line.get_ydata()) for line in traces[i : i + 4]) for i in (4, 8, 12)]
    names = list(axes.texts)
    assert [text.get_text() for text in names[:3]] == ["I", "aVR", "V1"]
    heights = [names[i].get_position()[1] for i in (4, 8, 12)]
    assert all(high < name < low - 3 for low, name, high in zip(lows, heights, highs, strict=True))
    words = " ".join(text.get_text() for text in figure.texts)
    assert shown in words
    assert RESEARCH in words
