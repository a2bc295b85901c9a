"""`msssm sweep`: what it varies, that it goes on exactly, and that it never sees the test set."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from msssm.errors import InputError
from tasks.cli.main import main
from tasks.sweep import open_study, parse
from tests.support.recipes import write_recipe
from tests.support.waiting import wait_for

VARY = ["--vary", "model.lr=log:1e-3..1e-1", "--vary", "model.backbone.layer.levels=0..3"]


def _arguments(recipe: Path, folder: Path, trials: int, *more: str) -> list[str]:
    options = ["--config", str(recipe), "--results", str(folder), "--trials", str(trials), *VARY]
    return ["sweep", *options, "--trainer.max_epochs", "1", *more]


def _started(arguments: list[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tasks.cli.main", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and an uninterrupted sweep of two trials at a time."""
    recipe = write_recipe(tmp_path_factory.mktemp("sweep"))
    folder = recipe.parent / "whole"
    main(_arguments(recipe, folder, 2, "--jobs", "2"))
    return recipe, folder


def test_the_table_holds_the_validation_of_each_trial_best_first(whole: tuple[Path, Path]) -> None:
    _, folder = whole
    rows = _rows(folder)
    assert sorted(row["trial"] for row in rows) == ["0", "1"]
    scores = [float(row["val/accuracy"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    for row in rows:
        run = folder / f"trial{row['trial']}"
        config = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
        assert config["lr"] == float(row["model.lr"])
        assert config["backbone"]["init_args"]["layer"]["init_args"]["levels"] == int(
            row["model.backbone.layer.levels"]
        )
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics["validation"] == {"monitor": "val/accuracy", "best": float(row["val/accuracy"])}
        assert metrics["test"] == {}, "a sweep selects on the validation, so nothing else is measured"
        assert not (run / "predictions.npz").exists()
    best = folder / f"trial{rows[0]['trial']}/config.yaml"
    assert f"msssm test --config {best}" in (folder / "table.md").read_text()


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_to_the_same_end(whole: tuple[Path, Path], tmp_path: Path) -> None:
    """Ctrl-C within a trial: its process is gone, its values are kept, and no finished trial is run again."""
    recipe, expected = whole
    folder = tmp_path / "cut"
    process = _started(_arguments(recipe, folder, 2))
    wait_for(folder / "trial1/log.txt", process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the same command resumes" in error
    assert "Traceback" not in error
    assert not (folder / "trial1/metrics.json").exists()
    first = (folder / "trial0/metrics.json").read_bytes()
    main(_arguments(recipe, folder, 2))
    assert (folder / "trial0/metrics.json").read_bytes() == first
    options = ("model.lr", "model.backbone.layer.levels")
    values = [
        {tuple(row[name] for name in ("trial", *options)) for row in _rows(where)} for where in (folder, expected)
    ]
    assert values[0] == values[1]


@pytest.mark.slow
def test_a_trial_that_is_killed_is_taken_up_from_its_checkpoint(whole: tuple[Path, Path], tmp_path: Path) -> None:
    """The sweep's own process died in a trial, after the training's checkpoint and before its end."""
    recipe, _ = whole
    folder = tmp_path / "killed"
    main(_arguments(recipe, folder, 1))
    with sqlite3.connect(folder / "study.db") as study:
        study.execute("UPDATE trials SET state = 'RUNNING'")
    (folder / "trial0/metrics.json").unlink()
    main(_arguments(recipe, folder, 1))
    assert "last.ckpt, step 10" in (folder / "trial0/log.txt").read_text()
    assert len(_rows(folder)) == 1


@pytest.mark.slow
def test_a_failed_trial_is_reported_and_does_not_end_the_sweep(tmp_path: Path) -> None:
    """A learning rate of 1e30 leaves the finite numbers."""
    recipe, folder = write_recipe(tmp_path), tmp_path / "sweep"
    vary = ["--vary", "model.lr=0.01,1e30", "--trials", "4"]
    main(["sweep", "--config", str(recipe), "--results", str(folder), *vary])
    assert {row["model.lr"] for row in _rows(folder)} == {"0.01"}
    assert 0 < (folder / "table.md").read_text().count("failed: msssm: ") == 4 - len(_rows(folder)) < 4


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ("model.lrr=1,2", "Option 'lrr' is not accepted"),
        ("bogus.x=1,2", "bogus.x"),
        ("model.lr=a,b", "Expected a <class 'float'>. Got value: a"),
        ("model.backbone.layer.levels=-1..2", "levels must be at least 0, got -1"),
        ("model.backbone.layer.levels=1.5..2", "Got value: 1.5"),
        ("model.lr=1..0", "--vary model.lr=1..0: expected OPTION= and a range low..high"),
        ("model.lr=log:0..1", "log:low..high with low above 0"),
        ("model.lr=0..inf", "--vary model.lr=0..inf: expected"),
        ("model.lr=3", "--vary model.lr=3: expected"),
        ("model.lr", "--vary model.lr: expected"),
        ("trainer.max_epochs=1,2", "an option is given twice"),
        ("run_dir=a,b", "--run_dir belongs to the sweep"),
    ],
)
def test_a_wrong_option_is_one_line_and_starts_nothing(
    vary: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--results", f"{tmp_path}/sweep", "--vary", vary, "--trainer.max_epochs=1"]
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", "--config", str(write_recipe(tmp_path)), *options])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("msssm: ")
    assert message in error
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_a_folder_holds_one_sweep_by_one_process(whole: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    recipe, folder = whole
    with pytest.raises(SystemExit, match="2"):
        main([*_arguments(recipe, folder, 2), "--vary", "model.weight_decay=0..0.1"])
    assert f"{folder} holds a sweep that differs in: --vary model.weight_decay" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*_arguments(recipe, folder, 2), "--model.weight_decay=0.5"])
    assert "holds a sweep that differs in: recipe" in capsys.readouterr().err
    question = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/study.db").user_attrs["question"]
    with (
        open_study(folder, question, "max"),
        pytest.raises(InputError, match="in use by another sweep"),
        open_study(folder, question, "max"),
    ):
        pass


def test_without_optuna_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "tasks.sweep", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_NoOptuna(), *sys.meta_path])
    for name in [name for name in sys.modules if name.startswith("optuna")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit, match="2"):
        main(_arguments(write_recipe(tmp_path), tmp_path / "sweep", 1))
    assert "msssm sweep needs Optuna: pip install 'msssm[sweep]'" in capsys.readouterr().err


class _NoOptuna:
    """An import system in which it is not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == "optuna":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_ranges_and_choices_are_those_of_optuna() -> None:
    assert dict(map(parse, ("a=log:1e-4..1e-2", "--b=0..0.5", "c=2..5", "d=s4,s6"))) == {
        "a": FloatDistribution(1e-4, 1e-2, log=True),
        "b": FloatDistribution(0, 0.5),
        "c": IntDistribution(2, 5),
        "d": CategoricalDistribution(("s4", "s6")),
    }
