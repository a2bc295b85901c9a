"""`msssm finetune`: a label of one's own is learned, no patient is on two sides, and the folder answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from datamodules.ptbxl import simulate
from datamodules.ptbxl.synthetic import write_record
from msssm import Backbone, MultiScaleSSM, SequenceClassifier
from msssm.errors import InputError
from msssm.pretrained import read_pretrained, write_pretrained
from tasks.cli.main import main
from tasks.ecg.finetune import read_table, split_rows
from tasks.ecg.recordings.inference import Windows, offline, standardised
from tasks.ecg.recordings.model import Answers, ClassAnswer, read_answers, read_model, write_answers
from tasks.ecg.recordings.options import RecordingOptions
from tests.support.tolerances import FLOAT32

COUNT = 36


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of fast and slow hearts, two of most patients, with their table; and a model at its random start."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "recs").mkdir()
    generator, lines = np.random.default_rng(0), []
    for k in range(COUNT):
        fast, long = k % 2, k // 2 % 2
        signal = simulate("STACH" if fast else "SBRAD", long, generator, 250)
        write_record(folder / f"recs/r{k}", signal, 250)
        lines.append({"file": f"r{k}", "patient": f"p{k // 3}", "fast": fast, "long": long})
    pd.DataFrame(lines).to_csv(folder / "labels.csv", index=False)
    torch.manual_seed(0)
    backbone = Backbone(MultiScaleSSM, 8, 1, norm="layer", prenorm=True)
    network = SequenceClassifier(nn.Linear(12, 8), backbone, 1)
    write_pretrained(folder / "base", backbone.config, network.state_dict(), "backbone.")
    write_answers(folder / "base", Answers("all", 0.0, 0.25, 100, Windows(250, 250, "max"), [ClassAnswer("NORM", "")]))
    return folder


def tune(folder: Path, output: Path, *more: str) -> None:
    words = ["--records", f"{folder}/recs", "--labels", f"{folder}/labels.csv", "--output", str(output)]
    main(["finetune", "--model", f"{folder}/base", *words, *more])


def test_a_label_of_ones_own_is_learned_and_answered(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune(folder, tmp_path / "mine", "--epochs", "25", "--lr", "0.02")
    answers = read_answers(tmp_path / "mine")
    fast = answers.classes[0]
    assert (fast.name, fast.test["auroc"]) == ("fast", 1.0)
    assert "| fast  |" in capsys.readouterr().out
    assert "| fast  |" in (tmp_path / "mine/README.md").read_text()
    assert (answers.mean, answers.std) == (0.0, 0.25)
    main(["ecg", f"{folder}/recs/r1.hea", "--model", f"{tmp_path}/mine", "--output", f"{tmp_path}/out"])
    printed = capsys.readouterr().out
    assert f"of {COUNT} recordings of your own: probabilities are calibrated on the validation part" in printed
    found = json.loads((tmp_path / "out/r1.json").read_text())
    model = read_model(tmp_path / "mine")
    recording = RecordingOptions(None, None, None, "derive", "refuse").read(folder / "recs/r1.hea", 100)
    logits = offline(model.network, standardised(recording, 0.0, 0.25), answers.windows)
    expected = answers.probabilities(logits)
    assert [found["probabilities"][each.name] for each in answers.classes] == pytest.approx(expected, abs=FLOAT32)
    with pytest.raises(SystemExit):
        tune(folder, tmp_path / "mine")
    assert "mine holds a model; choose another --output" in capsys.readouterr().err


def test_a_frozen_network_stays_and_a_seed_repeats(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        tune(folder, tmp_path / name, "--epochs", "2", "--freeze", "--seed", "3")
    base, one, other = (read_pretrained(path)[1] for path in (folder / "base", tmp_path / "a", tmp_path / "b"))
    for name, value in one.items():
        assert torch.equal(value, other[name])
        assert name.startswith("head.") or torch.equal(value, base[name])
    assert one["head.weight"].shape == (2, 8)


@pytest.mark.parametrize("seed", range(5))
def test_no_patient_is_in_two_parts(folder: Path, seed: int) -> None:
    table = read_table(folder / "labels.csv")
    rows = split_rows(table, seed)
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(COUNT))
    patients = [set(table.patient[chosen]) for chosen in rows.values()]
    assert not any(one & other for i, one in enumerate(patients) for other in patients[:i])
    assert len(rows["train"]) >= COUNT / 2


SPLITS = ["train"] * 4 + ["val"] * 4 + ["test"] * 4


def table(**changed: Any) -> pd.DataFrame:
    labels = [0, 1] * 6
    return pd.DataFrame({"file": [f"f{k}" for k in range(12)], "a": labels, "split": SPLITS} | changed)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (table(a=[0, 1, 2] * 4), r"line 4: expected 0 or 1 in the column a, got (np.int64\()?2"),
        (table(a=["yes", "no"] * 6), "line 2: expected 0 or 1 in the column a, got 'yes'"),
        (table(file=["f"] * 12), "names f more than once"),
        (table(split=["training"] * 12), "has the split 'training'; the column split says train, val or test"),
        (table(file=["f", None, *map(str, range(10))]), "line 3: the column file is empty"),
        (table(patient=["p", "q", None] * 4), "line 4: the column patient is empty"),
        (table().drop(columns="file"), "expected a column file, a label or more"),
        (table().drop(columns="a"), "expected a column file, a label or more"),
        (table()[:0], "0 lines"),
        (table(a=[0] * 4 + [0, 1] * 4), "the train part has 4 recordings, 0 of them with a"),
        (table(patient=["p"] * 12), "the patient p is in 3 splits"),
        (table(patient=["p"] * 12).drop(columns="split"), "expected 6 patients or more to split, got 1"),
    ],
)
def test_a_table_that_cannot_be_learned_from_is_refused(given: pd.DataFrame, message: str, tmp_path: Path) -> None:
    given.to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(InputError, match=message):
        split_rows(read_table(tmp_path / "labels.csv"), 0)


def test_recordings_that_cannot_be_used_are_all_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = pd.read_csv(folder / "labels.csv")
    lines.loc[3, "file"] = "nowhere"
    (tmp_path / "bad.csv").write_text("I,II\n1,2\n")
    lines.loc[5, "file"] = str(tmp_path / "bad.csv")
    lines.to_csv(tmp_path / "labels.csv", index=False)
    words = ["--records", f"{folder}/recs", "--labels", f"{tmp_path}/labels.csv", "--output", f"{tmp_path}/mine"]
    with pytest.raises(SystemExit, match="2"):
        main(["finetune", "--model", f"{folder}/base", *words])
    error = capsys.readouterr().err
    assert "nowhere: asked for the recording" in error
    assert "bad.csv: the recording" in error
    assert f"2 of {COUNT} recordings cannot be used; nothing was trained" in error
    assert not (tmp_path / "mine").exists()
