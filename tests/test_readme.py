"""What the README and the docs tell the reader to type exists and parses."""

import re
import shlex
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datamodules.ptbxl import LEADS, class_names, simulate
from datamodules.ptbxl.statements import scp_statements
from msssm import Backbone, MultiScaleSSM
from tasks.cli.main import main
from tasks.ecg.task import ECGTask
from tasks.run.checkpoint_io import DurableCheckpointIO
from tests.support.recipes import TINY_DATA

PAGES = [Path("README.md"), Path("CONTRIBUTING.md"), *Path("docs").glob("*.md")]
BLOCKS = [
    (page.name, line.split("#")[0].strip())
    for page in PAGES
    for block in re.findall(r"```(?:bash|console)\n(.*?)```", page.read_text(), re.S)
    for line in block.splitlines()
    if line.split("#")[0].strip()
]
# Commands on what only the reader has, and one that ends the process with a page of help.
THEIRS = ("mypackage", "my_experiments", "finetune", "mine.yaml --run_dir", ".help")
PYTHON = [(page.name, block) for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)]


@pytest.mark.parametrize(("page", "command"), [block for block in BLOCKS if block[1].startswith("make ")])
def test_make_commands_are_targets(page: str, command: str) -> None:
    words = shlex.split(command)
    before = sorted(Path("results").rglob("table.*")), [p.stat().st_mtime_ns for p in Path("results").rglob("table.*")]
    subprocess.run(["make", "-n", *words[1:]], check=True, capture_output=True)
    after = sorted(Path("results").rglob("table.*")), [p.stat().st_mtime_ns for p in Path("results").rglob("table.*")]
    assert before == after, "a dry run must write nothing"


def ptbxl_checkpoint(path: Path) -> None:
    """Of the network of configs/ptbxl.yaml, as it starts."""
    layer = partial(MultiScaleSSM, levels=3, kernel_size=2, state_size=26)
    task = ECGTask(Backbone(layer, 256, 10))
    data = {"mean": 0.0, "std": 0.2, "classes": class_names("all", scp_statements()), "sampling_rate": 100}
    DurableCheckpointIO().save_checkpoint({"state_dict": task.state_dict(), "PTBXLDataModule": data}, path)


def test_msssm_commands_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, but for a network and data small enough to train in a second."""
    (tmp_path / "configs").symlink_to(Path("configs").resolve())
    (tmp_path / "expressions.txt").write_text("[MAX 2 9 [MIN 4 7 ] 0 ]\n")
    ptbxl_checkpoint(tmp_path / "best.ckpt")
    signal = simulate("SR", 0, np.random.default_rng(0)) / 1000
    pd.DataFrame(signal[:660], columns=list(LEADS)).to_csv(tmp_path / "ecg.csv", index=False)
    monkeypatch.chdir(tmp_path)
    small = [*TINY_DATA, "--model.backbone.n_layers=1", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    pages = ("training.md", "README.md")
    commands = [
        shlex.split(command.replace("recording.hea", "ecg.csv --sampling_rate 100"))
        for page, command in BLOCKS
        if page in pages and command.startswith("msssm ") and not any(word in command for word in THEIRS)
    ]
    for _, subcommand, *words in commands:
        main([subcommand, *words, *(small if subcommand == "fit" else [])])
    assert (tmp_path / "runs/mine/metrics.json").exists()
    assert (tmp_path / "predictions/ecg.json").exists()
    assert {words[1] for words in commands} == {"fit", "test", "predict", "doctor", "ecg", "recipes"}


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_python_examples_run(page: str, code: str) -> None:
    """Their own assertions are the check."""
    assert "assert" in code
    exec(compile(code, page, "exec"), {})


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 8
    assert PYTHON


def test_promises_name_tests_that_are_there() -> None:
    """docs/promises.md: every row names a test, and every name is one."""
    text = Path("docs/promises.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| ") and not row.startswith("| promise")]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", row)
        assert named, row
        for file, name in named:
            [path] = Path("tests").rglob(file)
            assert re.search(rf"^def {name}\(" if name else "^def test_", path.read_text(), re.M), (file, name)
