"""Every recipe goes through the live command line, shrunk to one step."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

import msssm.baselines
from datamodules.listops import vocab_size
from msssm import Backbone, MultiScaleSSM, SequenceClassifier
from tasks.main import main
from tests.recipes import TINY_DATA

RECIPES = sorted(Path("configs").rglob("*.yaml"))


def _recipe(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_recipe_trains_and_validates(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rehearsal = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--model.backbone.n_layers=1", *TINY_DATA]
    main(["fit", "--config", str(path), *rehearsal, f"--data.root={tmp_path}", f"--run_dir={tmp_path}/run"])
    assert "val/accuracy=" in capsys.readouterr().out
    assert not (tmp_path / "run").exists(), "a rehearsal leaves nothing behind"


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_the_header_names_its_own_command(path: Path) -> None:
    header = path.read_text().split("\nseed_everything", 1)[0]
    commands = [line.split()[-1] for line in header.splitlines() if "msssm fit --config" in line]
    assert any(Path(command).resolve() == path.resolve() for command in commands)


@pytest.mark.parametrize("profile", ["quick", "paper"])
def test_the_rows_of_a_table_differ_only_in_the_network(profile: str) -> None:
    """Same data, same training budget, same optimiser: only the backbone and the run folder may differ."""

    def comparable(path: Path) -> dict[str, Any]:
        recipe = _recipe(path)
        del recipe["run_dir"], recipe["model"]["init_args"]["backbone"]
        return recipe

    first, *others = (comparable(path) for path in sorted(Path("configs", profile, "listops").glob("*.yaml")))
    assert len(others) == 7
    assert all(other == first for other in others)


def test_quick_rows_have_matched_parameter_counts() -> None:
    """Within 3 % of MS-SSM(S6)."""

    def parameters(path: Path) -> int:
        options = _recipe(path)["model"]["init_args"]["backbone"]["init_args"]
        layer = options.pop("layer")
        name = layer["class_path"].rsplit(".", 1)[1]
        make = MultiScaleSSM if name == "MultiScaleSSM" else getattr(msssm.baselines, name)
        backbone = Backbone(partial(make, **layer["init_args"]), **options)
        network = SequenceClassifier(nn.Embedding(vocab_size, backbone.d_model), backbone, 10)
        return sum(p.numel() for p in network.parameters())

    counts = {path.stem: parameters(path) for path in Path("configs/quick/listops").glob("*.yaml")}
    for row, count in counts.items():
        assert count == pytest.approx(counts["msssm_s6"], rel=0.03), row
