"""Classes of one's own in recipes and tables: opened by the user alone, and found whatever the folder holds."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pandas as pd
import pytest
import torch

from msssm.errors import InputError
from tasks.cli import plugins
from tasks.cli.main import main
from tasks.recipes.parser import class_of
from tasks.run.data import describe

PACKAGE = """
import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Regression(pl.LightningModule):
    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.w = nn.Parameter(torch.full((), start))

    def training_step(self, batch, index):
        x, y = batch
        return (self.w * x - y).square().mean()

    def validation_step(self, batch, index):
        self.log("val/mae", (self.w * batch[0] - batch[1]).abs().mean())

    def test_step(self, batch, index):
        self.log("test/mae", (self.w * batch[0] - batch[1]).abs().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)

class Line(pl.LightningDataModule):
    def __init__(self, sized: bool = True) -> None:
        super().__init__()
        self.sized = sized

    def train_dataloader(self):
        x = torch.arange(8.0)
        return DataLoader(TensorDataset(x, 3 * x), 4) if self.sized else iter([(x, 3 * x)])

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(2), torch.full((2,), 3.0)), 2)

    test_dataloader = val_dataloader
"""
TABLE = """
base:
  model: {{class_path: {0}.Regression}}
  data: {{class_path: {0}.Line}}
  checkpoint: {{monitor: val/mae, mode: min}}
  trainer: {{max_epochs: 1, enable_progress_bar: false, accelerator: cpu, logger: false}}
column: {{metric: test/mae, direction: lower, unit: mV}}
rows:
  far: {{label: from 0}}
  near: {{label: from 2, options: {{model.start: 2.0}}}}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module in the working folder, under a name that no other test has imported."""
    name = f"theirs_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(PACKAGE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/lines.yaml").write_text(TABLE.format(name))
    (tmp_path / "recipe.yaml").write_text(f"model: {name}.Regression\ndata: {name}.Line\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return name


def test_a_table_of_ones_own_task_data_and_metric(package: str, tmp_path: Path) -> None:
    """Plain Lightning classes, nothing of ours: the better row first, counts and a digest from the loaders."""
    main(["experiment", "mine", "--plugins", package, "--results", "out", "--seeds", "0", "--jobs", "1"])
    assert "| from 2" in (text := (tmp_path / "out/table.md").read_text())
    assert text.index("from 2") < text.index("from 0")
    assert "mae on lines, mV" in text
    assert "2 steps; tested once" in text
    runs = pd.read_csv(tmp_path / "out/table.csv").set_index("row")
    assert runs.test.to_dict() == {"near": 1.0, "far": 3.0}  # |w - 3| of an untrained w
    assert runs.options.isna().all(), "which packages are open says nothing of the result"
    metrics = json.loads((tmp_path / "out/runs/lines/near/seed0/metrics.json").read_text())
    assert metrics["data"]["counts"] == {"train": 8, "val": 2, "test": 2}
    assert len(metrics["data"]["digest"]) == 64


def test_a_recipe_opens_no_package(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", "recipe.yaml"])
    assert "open its package with --plugins PACKAGE if you trust it" in capsys.readouterr().err
    assert package not in sys.modules
    Path("recipe.yaml").write_text(Path("recipe.yaml").read_text() + f"plugins: [{package}]\n")
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", "recipe.yaml"])
    assert package not in sys.modules
    assert class_of(f"{package}.Line") is None
    assert package not in sys.modules


def test_an_installed_package_can_be_open_by_its_entry_point(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(".")
    entries = [EntryPoint("any name", package, plugins.GROUP)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries if group == plugins.GROUP else [])
    main(["fit", "--config", "recipe.yaml", "--run_dir=x", "--checkpoint.monitor=val/mae", "--trainer.max_epochs=1"])
    assert "x: test/mae 3" in capsys.readouterr().out


def test_an_unknown_plugin_is_named(package: str) -> None:
    for name in ("nowhere", f"{package}.within", ".relative"):
        with pytest.raises(InputError, match=f"--plugins {name}: there is no package or module"):
            plugins.open_plugins(["--plugins", name])
    assert plugins.open_plugins(["--a=1", "--plugins", package, "--b", "2"]) == ["--a=1", "--b", "2"]


def test_data_without_a_size_are_refused_before_the_first_step(
    package: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", "recipe.yaml", "--plugins", package, "--data.sized=false", "--trainer.max_epochs=1",
              "--checkpoint.monitor=val/mae"])  # fmt: skip
    assert "Line.train_dataloader() must give one DataLoader over a dataset with a length" in capsys.readouterr().err


def test_the_digest_is_of_the_evaluated_samples(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(".")
    line = getattr(__import__(package), "Line")()  # noqa: B009
    before = describe(line)
    assert describe(line) == before
    batch = next(iter(line.val_dataloader()))
    monkeypatch.setattr(line, "val_dataloader", lambda: torch.utils.data.DataLoader(list(zip(*batch, strict=True))))
    assert describe(line)["counts"] == before["counts"]
    assert describe(line)["digest"] != before["digest"], "other batches"


def test_the_command_finds_its_own_packages_first(tmp_path: Path) -> None:
    for name in ("tasks.py", "msssm.py", "datamodules/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('theirs')\n")
    command = Path(sys.executable).parent / "msssm"
    run = subprocess.run(
        [command, "doctor", "--help"], cwd=tmp_path, env={"PYTHONPATH": "."}, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, ""), "by msssm.doctor"
    assert "msssm doctor" in run.stdout
