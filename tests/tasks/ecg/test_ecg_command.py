"""`msssm ecg`: an exported model answers with calibrated probabilities and thresholds, and refuses what it must."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from scipy.special import expit
from torch import Tensor

from datamodules import PTBXLDataModule
from datamodules.ptbxl import LEADS, simulate
from msssm import Backbone, pretrained
from tasks.cli.load import build
from tasks.cli.main import main
from tasks.ecg.calibration import best_f1_threshold, brier
from tasks.ecg.paper import RESEARCH
from tasks.ecg.recordings import answer as answer_module
from tasks.ecg.recordings import judge as judge_module
from tasks.ecg.recordings.answer import named_recordings
from tasks.ecg.recordings.inference import offline
from tasks.ecg.recordings.model import read_answers, read_model
from tasks.run.checkpoint_io import DurableCheckpointIO
from tests.support.ptbxl import copy_to
from tests.support.tolerances import FLOAT32, FLOAT64, allowed

RECIPE = [
    "--data.synthetic=null", "--data.label_set=superdiagnostic", "--data.crop=250", "--model.aggregation=max",
    "--model.backbone.d_model=16", "--model.backbone.n_layers=1",
]  # fmt: skip
CONFIG = "quick/ptbxl/msssm_s6"
FEW = 3  # positives among the 20 records of a fold


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has generated data, best.ckpt of a network at its start, and its export, `tiny`."""
    folder = tmp_path_factory.mktemp("ecg")
    copy_to(folder / "data")
    recipe = [*RECIPE, f"--data.root={folder}/data"]
    built = build(CONFIG, recipe)
    built.datamodule.prepare_data()
    built.datamodule.setup("test")
    state = {"state_dict": built.model.state_dict(), "PTBXLDataModule": built.datamodule.state_dict()}
    DurableCheckpointIO().save_checkpoint(state, folder / "best.ckpt")
    with contextlib.redirect_stdout(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_module, "MIN_POSITIVES", FEW)
        run = ["--config", CONFIG, "--ckpt_path", f"{folder}/best.ckpt", *recipe]
        main(["export", *run, "--output", f"{folder}/tiny", "--ecg"])
    return folder


def recording(path: Path, signal: Any = None, rate: int = 100, leads: Any = LEADS) -> Any:
    """A generated ECG in mV, or a given signal, written as .csv."""
    signal = simulate("AFIB", 2, np.random.default_rng(3), rate) / 1000 if signal is None else signal
    rows = "\n".join(",".join(f"{value:.6f}" for value in row) for row in signal)
    path.write_text(f"# sampling_rate: {rate}\n{','.join(leads)}\n{rows}\n")
    return signal


def held_out(folder: Path, split: str) -> tuple[Any, Any]:
    """Labels and logits of a fold, record by record through `offline`."""
    data = PTBXLDataModule(f"{folder}/data", label_set="superdiagnostic", crop=250)
    data.setup("test")
    model, records = read_model(folder / "tiny"), data.split(split)
    whole = [torch.from_numpy((records.signals[row] / 1000 - data.mean) / data.std).float() for row in records.rows]
    return records.labels, torch.stack([offline(model.network, x, model.answers.windows) for x in whole]).numpy()


def test_an_export_is_calibrated_on_fold_9_and_judged_on_fold_10(folder: Path) -> None:
    answers = read_answers(folder / "tiny")
    target, logit = held_out(folder, "val")
    slope, intercept = (np.array([getattr(each, name) for each in answers.classes]) for name in ("slope", "intercept"))
    probability = expit(slope * logit + intercept)
    for k, each in enumerate(answers.classes):
        assert each.positives == target[:, k].sum()
        assert (each.threshold is not None) == (each.positives >= FEW and each.slope > 0)
        if each.threshold is not None:
            assert each.threshold == pytest.approx(best_f1_threshold(target[:, k], probability[:, k]), abs=FLOAT32)
    assert any(each.threshold is None for each in answers.classes)
    assert any(each.threshold is not None for each in answers.classes)
    before, after = brier(target, expit(logit)), brier(target, probability)
    assert answers.validation["brier"] == pytest.approx([before, after], abs=FLOAT32)
    assert after < before
    target, logit = held_out(folder, "test")
    assert answers.test["brier"][0] == pytest.approx(brier(target, expit(logit)), abs=FLOAT32)
    assert answers.test["records"] == len(target)


def test_rare_classes_share_their_fit_and_have_no_threshold(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are drawn from sigmoid(2 z - 1): whatever is common finds this line by itself."""
    data = PTBXLDataModule(f"{folder}/data", label_set="superdiagnostic", crop=250)
    data.setup("test")
    generator = np.random.default_rng(0)
    logit = generator.normal(size=(20_000, 5))
    target = (generator.random(logit.shape) < expit(2 * logit - 1)).astype(float)
    target[:, 3:] = 0
    target[:5, 3:] = 1
    monkeypatch.setattr(judge_module, "_logits", lambda *_: (target, logit))
    classes = judge_module.judge(torch.nn.Identity(), data, "max").classes
    for each in classes[:3]:
        assert (each.slope, each.intercept) == pytest.approx(
            (2, -1), abs=allowed(0.1, "3 standard errors of 20,000 labels")
        )
        assert each.threshold is not None
    assert (classes[3].slope, classes[3].intercept) == (classes[4].slope, classes[4].intercept)
    assert [each.threshold for each in classes[3:]] == [None, None]


def test_the_answer_is_calibrated_and_marks_what_reaches_its_threshold(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its logits are those that `predict --record` gives with recipe and checkpoint."""
    recording(tmp_path / "mine.csv")
    main(["ecg", f"{tmp_path}/mine.csv", "--model", f"{folder}/tiny", "--output", f"{tmp_path}/out", "--stream"])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out/mine.json").read_text())
    own = ["--ckpt_path", f"{folder}/best.ckpt", "--record", f"{tmp_path}/mine.csv", "--output", f"{tmp_path}/own"]
    main(["predict", "--config", CONFIG, *RECIPE, *own])
    expected = json.loads((tmp_path / "own/mine.json").read_text())
    assert found["logits"] == pytest.approx(expected["logits"], abs=FLOAT32)
    assert "thresholds" not in expected
    answers = read_answers(folder / "tiny")
    for each in answers.classes:
        probability = expit(each.slope * found["logits"][each.name] + each.intercept)
        assert found["probabilities"][each.name] == pytest.approx(probability, abs=FLOAT64)
        reached = each.threshold is not None and probability >= each.threshold
        assert (each.name in found["above_threshold"]) == reached
    assert re.findall(r"# +\* \d\.\d+ +\d\.\d+ +(\S+)", printed) == found["above_threshold"]
    assert "generated ECGs, of no patient" in printed
    assert RESEARCH in printed
    assert "the whole recording at once differs by" in printed
    assert (tmp_path / "out/mine.png").stat().st_size > 50_000


def test_what_is_unlike_the_data_is_flagged(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signal = simulate("SR", 1, np.random.default_rng(1), 500)[:4000, :9] / 1000
    recording(tmp_path / "a.csv", signal, rate=500, leads=LEADS[:9])
    where = ["--model", f"{folder}/tiny", "--output", f"{tmp_path}/out", "--fill_missing", "zero"]
    main(["ecg", f"{tmp_path}/a.csv", *where])
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "out/a.json").read_text())
    assert "unlike PTB-XL: V4, V5, V6 missing" in printed
    assert "leads are missing: 5 statements that need all twelve are withheld" in printed
    assert (found["withheld"], found["probabilities"]) == (["CD", "HYP", "MI", "NORM", "STTC"], {})
    assert [text.split(";")[0] for text in found["unlike_ptbxl"]][:2] == ["V4, V5, V6 missing", "8.0 s long"]
    assert found["notes"] == ["resampled from 500 to 100 Hz", "missing, filled: V4, V5, V6"]


@pytest.mark.parametrize("leads", [",".join(LEADS[::-1]), f"[{', '.join(LEADS[::-1])}]"])
def test_leads_unit_and_rate_of_a_bare_array_are_given_by_options(folder: Path, tmp_path: Path, leads: str) -> None:
    np.save(tmp_path / "a.npy", 1000 * recording(tmp_path / "b.csv")[:, ::-1])
    where = ["--model", f"{folder}/tiny", "--output", f"{tmp_path}/out"]
    main(["ecg", f"{tmp_path}/a.npy", "--leads", leads, "--sampling_rate", "100", "--unit", "uV", *where])
    main(["ecg", f"{tmp_path}/b.csv", *where])
    found = [json.loads((tmp_path / "out" / f"{name}.json").read_text())["logits"] for name in ("a", "b")]
    assert found[0] == pytest.approx(found[1], abs=allowed(1e-4, "the table is rounded"))


SIGNAL = simulate("SR", 0, np.random.default_rng(0)) / 1000
GAP = np.where(np.arange(1000)[:, None] == 5, np.nan, SIGNAL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"signal": SIGNAL[:, :2], "leads": LEADS[:2]}, "without V1, V2, V3, V4, V5, V6; give all twelve"),
        ({"signal": GAP}, "has missing samples (NaN) in I (1)"),
        ({"signal": SIGNAL[:200]}, "has 200 samples at the model's rate, fewer than its window of 250"),
        ({"signal": 1000 * SIGNAL}, "the unit is likely uV: --unit uV"),
    ],
    ids=["two leads", "NaN", "short", "microvolts"],
)
def test_recordings_that_cannot_be_used_are_refused_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any], message: str
) -> None:
    recording(tmp_path / "mine.csv", **{"signal": SIGNAL, **content})
    with pytest.raises(SystemExit, match="2"):
        main(["ecg", f"{tmp_path}/mine.csv", "--model", f"{folder}/tiny", "--output", f"{tmp_path}/out"])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("msssm: ")
    assert message in line
    assert len(line.replace(str(tmp_path), "")) < 480
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.hea"], "none.hea, got no such file"),
        (["empty"], "got none; it has no WFDB header"),
        (["mine.csv", "--model", "ptbxl-huge"], "neither a shipped one (there is none) nor a folder"),
        (["mine.csv", "--model", "empty"], "empty has no ecg.json; name a folder that msssm export --ecg wrote"),
        (["mine.csv", "--model", "damaged"], "ecg.json is damaged or not of format 1"),
        (["mine.csv", "--model", "older"], "ecg.json is damaged or not of format 1 (another format)"),
        (["mine.csv", "--model", "unfit"], "the weights do not fit ecg.json"),
        (["mine.csv", "--output", "mine.csv"], "cannot be a folder: there is a file in its place"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_refused_in_one_line(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "shipped")
    recording(Path("mine.csv"))
    Path("empty").mkdir()
    text = (folder / "tiny/ecg.json").read_text()
    content = json.loads(text)
    for name, changed in {
        "damaged": text[:100],
        "older": json.dumps({**content, "format": 0}),
        "unfit": json.dumps({**content, "classes": content["classes"][1:]}),
    }.items():
        shutil.copytree(folder / "tiny", name)
        Path(name, "ecg.json").write_text(changed)
    with pytest.raises(SystemExit, match="2"):
        main(["ecg", "--model", f"{folder}/tiny", *words])
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_shipped_models_are_found_by_name_and_the_best_answers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(pretrained, "SHIPPED", shipped)
    main(["ecg"])
    assert "no model is shipped with this version" in capsys.readouterr().out
    for name, score in (("a", 0.7), ("better", 0.9)):
        shutil.copytree(folder / "tiny", shipped / name)
        content = json.loads((shipped / name / "ecg.json").read_text())
        content["validation"]["auroc"] = score
        (shipped / name / "ecg.json").write_text(json.dumps(content))
    main(["ecg", "--output", f"{tmp_path}/out"])
    printed = capsys.readouterr().out
    assert "generated_example: 10.0 s at 500 Hz; heart rate 83 /min" in printed.partition("example, of no patient")[2]
    assert {path.suffix for path in (tmp_path / "out").glob("generated_example*")} == {".html", ".json", ".png"}
    listed = [line.split() for line in printed.splitlines() if "statements of PTB-XL" in line]
    assert [(words[0], words[-1]) for words in listed] == [("better", "default"), ("a", listed[1][-1])]
    assert read_model().name == "better"
    x = torch.randn(2, 9, 16)
    assert torch.equal(Backbone.from_pretrained("a")(x), Backbone.from_pretrained(folder / "tiny")(x))
    with pytest.raises(FileNotFoundError, match=r"asked for the model 'c', got neither a shipped one \(a, better\)"):
        Backbone.from_pretrained("c")


def test_an_interruption_keeps_what_was_answered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(network: Any, x: Tensor, windows: Any) -> Tensor:
        if len(x) < 1000:
            raise KeyboardInterrupt
        return offline(network, x, windows)

    recording(tmp_path / "a.csv")
    recording(tmp_path / "b.csv", SIGNAL[:500])
    monkeypatch.setattr(answer_module, "offline", interrupted)
    with pytest.raises(SystemExit, match="130"):
        main(["ecg", str(tmp_path), "--model", f"{folder}/tiny", "--output", f"{tmp_path}/out"])
    assert capsys.readouterr().err == "msssm: interrupted\n"
    assert [row["recording"] for row in csv.DictReader((tmp_path / "out/predictions.csv").open())] == ["a"]


def test_every_file_is_answered_or_listed_and_earlier_predictions_are_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Among them names whose bytes are no UTF-8, as Windows' archives have."""
    (tmp_path / "in").mkdir()
    latin = tmp_path / "in" / os.fsdecode(b"caf\xe9.csv")
    recording(latin)
    recording(tmp_path / "in" / "good.csv")
    (tmp_path / "in" / os.fsdecode(b"b\xe4d.csv")).write_text("I,II\n")
    (tmp_path / "in" / "lost.hea").write_text("lost 1 100 1000\nlost.dat 16 1000/mV 16 0 0 0 0 I\n")
    words = ["ecg", f"{tmp_path}/in", "--model", f"{folder}/tiny", "--output", f"{tmp_path}/out"]
    for _ in range(2):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        out, err = capsys.readouterr()
        out.encode(), err.encode()
        assert "lost.dat is missing" in err
        assert r"b\xe4d.csv is not a table of numbers: it has no rows" in err
        assert "2 of 4 recordings were predicted" in err
    assert "predictions.csv of an earlier call is now predictions-1.csv" in out
    for name in ("predictions.csv", "predictions-1.csv"):
        rows = csv.DictReader((tmp_path / "out" / name).open())
        assert [row["recording"] for row in rows] == [r"caf\xe9", "good"]


def test_outputs_of_several_sources_have_names_of_their_own(tmp_path: Path) -> None:
    for name in ("x/a.csv", "x/a.npy", "y/a.csv", "y/b.csv.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    x, y = tmp_path / "x", tmp_path / "y"
    assert list(named_recordings([x, x / "a.csv"])) == ["a.csv", "a.npy"]
    assert list(named_recordings([y])) == ["a", "b"]
    assert list(named_recordings([x, y])) == ["x/a.csv", "x/a.npy", "y/a", "y/b"]


def test_the_card_has_use_data_thresholds_and_scores(folder: Path) -> None:
    card, answers = ModelCard.load(folder / "tiny/README.md").text, read_answers(folder / "tiny")
    assert RESEARCH in card
    assert "Generated ECGs" in card
    for each in answers.classes:
        [line] = [line.split("|") for line in card.splitlines() if line.startswith(f"| {each.name} ")]
        assert line[2].strip() == str(each.positives)
        assert line[4].strip() == ("" if each.threshold is None else f"{each.threshold:.3f}")
    [line] = [line for line in card.splitlines() if line.startswith("| 10 ")]
    assert f"{answers.test['auroc']:.3f}" in line


def test_runs_of_other_tasks_have_nothing_to_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = build("quick/listops/msssm_s6", [])
    state = {"state_dict": built.model.state_dict(), "pytorch-lightning_version": "2.6.6"}
    DurableCheckpointIO().save_checkpoint(state, tmp_path / "best.ckpt")
    run = ["--config", "quick/listops/msssm_s6", "--ckpt_path", f"{tmp_path}/best.ckpt"]
    with pytest.raises(SystemExit, match="2"):
        main(["export", *run, "--output", f"{tmp_path}/out", "--ecg"])
    assert "--ecg needs a run of tasks.ECGTask" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
