"""The report on fresh ListOps: which expressions, how they are counted, and that its accuracies are the model's."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from datamodules import ListOpsDataModule
from datamodules.listops import decode, encode, tokenize
from datamodules.listops.expressions import join
from tasks.cli.listops_report import FILE, _kept
from tasks.cli.load import build
from tasks.cli.main import main
from tasks.listops.report import answers, breakdown, depths, fresh_expressions
from tests.support.recipes import fit, write_recipe
from tests.support.tolerances import allowed
from tests.tasks.table.test_table import write_run

EXPRESSIONS = {
    "[MAX 2 9 [MIN 4 7 ] 0 ]": 2,
    "[SM 1 2 ]": 1,
    "[MED [SM [MAX 1 2 ] 3 ] 5 ]": 3,
    "[SM [MIN 1 1 ] [MIN 2 2 ] ]": 2,
}


def _expressions() -> Any:
    return join([encode(tokenize(text)) for text in EXPRESSIONS], [9, 3, 5, 3])


def test_depth_is_the_number_of_operators_around_the_deepest_digit() -> None:
    assert depths(_expressions()).tolist() == list(EXPRESSIONS.values())


def test_every_breakdown_counts_every_expression_once() -> None:
    right = np.array([True, False, True, True])
    lines = breakdown(_expressions(), right)
    for kind in ("all", "root operator", "depth", "length in tokens"):
        chosen = lines[lines.kind == kind]
        assert chosen["count"].sum() == 4, kind
        assert (chosen["count"] * chosen.accuracy).sum() == pytest.approx(3), kind
    by_root = lines[lines.kind == "root operator"].set_index("name")
    assert set(by_root.index) == {"MAX", "MED", "SM"}
    assert by_root.loc["SM", ["count", "accuracy"]].tolist() == [2, 0.5]
    assert lines["name"][lines.kind == "depth"].tolist() == ["1", "2", "3"]


def test_fresh_expressions_are_distinct_new_and_in_range(tmp_path: Path) -> None:
    """In a space so small that another seed repeats the training set: nothing of it comes through."""
    data = ListOpsDataModule(
        str(tmp_path), min_length=4, max_length=7, max_depth=2, max_args=4, train_size=3000, val_size=5, test_size=5
    )
    data.prepare_data()
    data.setup("validate")
    train = data.train_dataloader().dataset.expressions  # type: ignore[attr-defined]
    known = {train.row(i).tobytes() for i in range(train.samples)}
    fresh = fresh_expressions(data, 500, 1, train)
    rows = {fresh.row(i).tobytes() for i in range(500)}
    assert len(rows) == 500
    assert not rows & known
    drawn = fresh_expressions(data, 500, 1, None)
    assert {drawn.row(i).tobytes() for i in range(500)} & known, "without the check some would have been known"


def test_longer_expressions_are_longer_than_any_trained(tmp_path: Path) -> None:
    data = ListOpsDataModule(str(tmp_path), min_length=4, max_length=30, max_depth=4, max_args=4)
    longer = fresh_expressions(data, 50, 2, None)
    lengths = [sum(2 if t.startswith("[") else t != "]" for t in decode(longer.row(i))) for i in range(50)]
    assert 30 < min(lengths) <= max(lengths) < 60


def test_the_report_of_a_run_is_the_models_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, max_epochs=1)
    fit(recipe)
    run = tmp_path / "runs" / "seed0"
    capsys.readouterr()
    main(["listops-report", "--run_dir", str(run), "--count", "300"])
    lines = pd.read_csv(run / FILE)
    shown = capsys.readouterr()
    assert "all (n = 300)" in shown.out
    assert "no report on lengths 60 .. 120" in shown.err, "trees of depth 4 with at most 4 arguments stay shorter"
    assert (run / "listops_report.png").stat().st_size > 5_000
    assert lines["name"][lines.kind == "beyond training"].tolist() == ["30 .. 60"]
    built = build(recipe, [])
    task, data = built.model.eval(), built.datamodule
    task.load_state_dict(torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"])
    data.prepare_data()
    data.setup("validate")
    train = data.train_dataloader().dataset.expressions
    fresh = fresh_expressions(data, 300, 1, train)
    with torch.no_grad():
        one_by_one = [task(torch.from_numpy(fresh.row(i).astype(np.int64))[None]).argmax().item() for i in range(300)]
    assert answers(task, fresh, torch.device("cpu")).tolist() == one_by_one
    assert lines.accuracy[0] == pytest.approx(
        np.mean(np.array(one_by_one) == fresh.labels), abs=allowed(1e-6, "the file has six digits")
    )


def test_another_task_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["listops-report", "--config", "quick/ptbxl/msssm_s6", f"--run_dir={tmp_path}"])
    assert "asked for a ListOps run, got ECGTask" in capsys.readouterr().err


def test_reports_of_several_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds are averaged, the best row is first; complete reports are not made again (the runs have no weights)."""
    right = {("s4d", 0): [True, False, True, True], ("s4d", 1): [False] * 4, ("mamba", 0): [True, False, True, False]}
    for (row, seed), answered in right.items():
        run = write_run(tmp_path, row, seed, 0.4)
        tokens = [encode(tokenize(text)) for text in EXPRESSIONS] * 5
        lines = breakdown(join(tokens, [9, 3, 5, 3] * 5), np.array(answered * 5))
        lines.to_csv(run / FILE, index=False)
    main(["listops-report", "--results", str(tmp_path), "--count", "20"])
    shown = " ".join(capsys.readouterr().out.split())
    # sqrt(0.5 0.5 / 20) = 11.2 points, sqrt(0.375 0.625 / 20) = 10.8.
    assert shown.index("| Mamba | 1 | 50.0 +- 11.2 |") < shown.index("| S4D | 2 | 37.5 +- 10.8 |")
    main(["table", str(tmp_path)])
    assert "href='listops_report.md'" in (tmp_path / "table.html").read_text()
    written = pd.read_csv(tmp_path / FILE)
    assert len(written[(written.row == "s4d") & (written.seed == 1)]) == len(lines)
    assert _kept(run, 20) is not None
    assert _kept(run, 30) is None, "another count is another report"
    (run / "checkpoints").mkdir()
    (run / "checkpoints/best.ckpt").touch()
    os.utime(run / FILE, (0, 0))
    assert _kept(run, 20) is None, "the checkpoint is newer"
