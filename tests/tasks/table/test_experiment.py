"""`msssm experiment`: what it runs, what it says, and that it resumes."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.cli.main import main
from tests.support.recipes import write_recipe
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment `mine`: a row that is trained in a second, one with less, one that diverges."""
    folder = tmp_path_factory.mktemp("experiment")
    recipe = yaml.safe_load(write_recipe(folder, max_epochs=1).read_text())
    base = {key: recipe[key] for key in ("model", "data", "trainer")}
    del base["trainer"]["enable_progress_bar"]
    rows = {
        "whole": {"label": "The whole"},
        "less": {"label": "Fewer levels", "options": {"model.backbone.layer.levels": 1}},
        "diverges": {"label": "Too fast", "options": {"model.lr": 1e30}},
    }
    (folder / "mine").mkdir()
    content = {"base": base, "rows": rows, "threads": 1, "compare": "whole"}
    (folder / "mine/listops.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


def test_rows_are_trained_and_what_fails_is_reported(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fails and the others are not kept from their end; then those are left as they are."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    words = ["experiment", str(folder / "mine"), "--results", str(folder / "results"), "--jobs", "2"]
    with pytest.raises(SystemExit, match="1"):
        main(words)
    output, error = capfd.readouterr()
    assert "3 of 3 runs to do" in output
    assert "listops/less/seed0                   step     10/10" in output, "a line of progress at each validation"
    runs = folder / "results/runs/listops"
    assert "listops/diverges/seed0 stopped (exit code 2); the end of" in error
    assert "msssm: the training loss is nan at step" in error
    assert "1 of 3 runs are not complete: listops/diverges/seed0" in error
    assert not (runs / "diverges/seed0/metrics.json").exists()
    for row, levels in (("whole", 2), ("less", 1)):
        config = yaml.safe_load((runs / row / "seed0/config.yaml").read_text())
        assert config["model"]["init_args"]["backbone"]["init_args"]["layer"]["init_args"]["levels"] == levels
        assert json.loads((runs / row / "seed0/metrics.json").read_text())["hardware"]["threads"] == 1
    assert re.findall(r"^\| (\w[^|]*?) +\|", output, re.M) == ["model", "The whole", "Fewer levels"]
    assert "minus whole" in (folder / "results/table.md").read_text()

    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    main([*words, "--rows", "whole", "less"])
    assert "0 of 2 runs to do" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


@pytest.mark.slow
def test_a_stopped_experiment_resumes(folder: Path, tmp_path: Path) -> None:
    """SIGTERM within a training: no process is left, and the same command resumes from its checkpoint."""
    words = ["experiment", str(folder / "mine"), "--results", str(tmp_path), "--rows", "whole", "--seeds", "3"]
    words += ["--trainer.max_epochs", "6", "--trainer.val_check_interval", "0.5"]
    command = [sys.executable, "-m", "tasks.cli.main", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    run = tmp_path / "runs/listops/whole/seed3"
    wait_for(run / "checkpoints/last.ckpt", process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the same command resumes" in error
    assert not (run / "metrics.json").exists()
    main(words)
    assert "last.ckpt, step " in (run / "log.txt").read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["seed"], metrics["steps"]) == (3, 60)


def test_the_resolved_recipe_of_a_row_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["experiment", str(folder / "mine"), "--rows", "less", "--seeds", "7", "--print_config", "--model.lr=0.5"])
    recipe = yaml.safe_load(capsys.readouterr().out)
    assert recipe["model"]["init_args"]["lr"] == 0.5
    assert recipe["data"]["init_args"]["shuffle_seed"] == recipe["seed_everything"] == 7
    assert recipe["model"]["init_args"]["backbone"]["init_args"]["layer"]["init_args"]["levels"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["nothing"],
            "there is no experiment 'nothing'; there are ablations, choices, flagship, ladder, medium, paper",
        ),
        (["quick", "--tasks", "x"], "the experiment quick has no task 'x'; it has copying, counting, digits, listops"),
        (["ablations", "--tasks", "listops", "--rows", "x"], "there is no row 'x'; there are full, s4, no-ssm"),
        (["quick", "--seeds", "0", "-1"], "a seed is a whole number from 0, got -1"),
        (["ablations", "--tasks", "ptbxl", "--of", "medium"], "the experiment medium has no task 'ptbxl'"),
        (["quick", "--run_dir", "x"], "--run_dir belongs to the experiment"),
        (["quick", "--resources", "a=1"], "--resources are those of a cluster"),
        (["quick", "--cluster", "local", "--resources", "a"], "--resources a: expected KEY=VALUE"),
    ],
)
def test_what_is_unknown_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.cli.experiment._check_rows", lambda runs, overrides: None)
    with pytest.raises(SystemExit, match="2"):
        main(["experiment", *words, *(["--results", str(tmp_path / "results")] if words != ["nothing"] else [])])
    assert capsys.readouterr().err.startswith(f"msssm: {message}")
    assert not (tmp_path / "results").exists()


def test_a_row_that_is_not_accepted_starts_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load((folder / "mine/listops.yaml").read_text())
    content["rows"]["less"]["options"] = {"model.backbone.layer.levls": 1}
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine/listops.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(SystemExit, match="2"):
        main(["experiment", str(tmp_path / "mine"), "--results", str(tmp_path / "results")])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"msssm: {path}, row less: ")
    assert "Option 'levls' is not accepted" in error
    assert not (tmp_path / "results").exists()
