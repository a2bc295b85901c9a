"""Every recipe goes through the live command line, shrunk to one step."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

import msssm.baselines
import tasks
from msssm import Backbone, MultiScaleSSM
from tasks.main import main
from tests.support import cifar10, images, ptbxl
from tests.support.recipes import TINY_DATA
from tests.support.tolerances import allowed

RECIPES = sorted(Path("configs").rglob("*.yaml"))
TABLES = sorted(path for path in Path("configs").glob("*/*") if path.is_dir())  # configs/<profile>/<task>


def _recipe(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def ptbxl_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ptbxl.copy_to(tmp_path_factory.mktemp("root")).parent


def _small_data(recipe: dict[str, Any], folder: Path, request: pytest.FixtureRequest) -> list[str]:
    """Options that put data in place of the recipe's that are made in a second."""
    if recipe["data"]["class_path"] == "datamodules.PTBXLDataModule":
        root = request.getfixturevalue("ptbxl_root")
        small = ["--data.batch_size=2", "--data.eval_batch_size=20", "--data.num_workers=0"]
        return [*small, f"--data.root={root}", *(["--data.synthetic=null"] if "quick" in recipe["run_dir"] else [])]
    if recipe["data"]["class_path"] == "datamodules.SequentialCIFARDataModule":
        cifar10.accept_tiny(request.getfixturevalue("monkeypatch"))
        cifar10.write_folder(folder / "cifar10")
        return [f"--data.root={folder}", "--data.batch_size=4"]
    if recipe["data"]["class_path"] == "datamodules.DigitsDataModule":
        return ["--data.batch_size=4"]
    if recipe["data"]["class_path"] == "datamodules.ImageNetDataModule":
        images.write_folder(folder / "imagenet")
        small = ["--data.batch_size=4", "--data.num_workers=0", "--data.holdout=2", "--model.backbone.d_model=16"]
        return [*small, f"--data.root={folder}", f"--model.num_classes={len(images.CLASSES)}"]
    if recipe["data"]["class_path"] == "datamodules.SelectiveCopyingDataModule":
        return ["--data.train_size=100", "--data.val_size=50"]
    return [*TINY_DATA, f"--data.root={folder}"]


# A step of the paper's rows takes seconds each, at their full width and length.
REHEARSED = [pytest.param(path, marks=[pytest.mark.slow] if "paper" in path.parts else []) for path in RECIPES]


@pytest.mark.parametrize("path", [path for path in RECIPES if "paper" in path.parts], ids=str)
def test_the_options_of_a_row_of_the_paper_are_those_of_its_classes(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line reads it whole, and gives back what is written in it."""
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", str(path), "--print_config"])
    read, written = yaml.safe_load(capsys.readouterr().out), _recipe(path)
    assert read["model"]["class_path"] == written["model"]["class_path"]
    backbone = written["model"]["init_args"]["backbone"]["init_args"]
    layer = read["model"]["init_args"]["backbone"]["init_args"]["layer"]["init_args"]
    assert backbone["layer"].get("init_args", {}).items() <= layer.items()


@pytest.mark.parametrize("path", REHEARSED, ids=str)
def test_recipe_trains_and_validates(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    recipe = _recipe(path)
    rehearsal = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--model.backbone.n_layers=1"]
    data = _small_data(recipe, tmp_path, request)
    main(["fit", "--config", str(path), *rehearsal, *data, f"--run_dir={tmp_path}/run"])
    monitor = recipe.get("checkpoint", {}).get("monitor", "val/accuracy")
    assert f"{monitor}=" in capsys.readouterr().out
    assert not (tmp_path / "run").exists(), "a rehearsal leaves nothing behind"


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_the_header_names_its_own_command(path: Path) -> None:
    header = path.read_text().split("\nseed_everything", 1)[0]
    commands = [line.split("--config")[1].split()[0] for line in header.splitlines() if "msssm fit --config" in line]
    assert any(Path(command).resolve() == path.resolve() for command in commands)


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_the_rows_of_a_table_differ_only_in_the_network(table: Path) -> None:
    """Same data, same training budget, same optimiser: only the backbone and the run folder may differ."""

    def comparable(path: Path) -> dict[str, Any]:
        recipe = _recipe(path)
        del recipe["run_dir"], recipe["model"]["init_args"]["backbone"]
        return recipe

    first, *others = (comparable(path) for path in sorted(table.glob("*.yaml")))
    assert len(others) >= 6
    assert all(other == first for other in others)


@pytest.mark.parametrize("table", [table for table in TABLES if table.parent.name != "paper"], ids=str)
def test_reduced_rows_have_matched_parameter_counts(table: Path) -> None:
    """Within 3 % of MS-SSM(S6)."""

    def parameters(path: Path) -> int:
        model = _recipe(path)["model"]
        options = model["init_args"].pop("backbone")["init_args"]
        layer = options.pop("layer")
        name = layer["class_path"].rsplit(".", 1)[1]
        make = MultiScaleSSM if name == "MultiScaleSSM" else getattr(msssm.baselines, name)
        backbone = Backbone(partial(make, **layer["init_args"]), **options)
        plain = {key: value for key, value in model["init_args"].items() if not str(value).startswith("${")}
        task = getattr(tasks, model["class_path"].removeprefix("tasks."))(backbone, **plain)
        return sum(p.numel() for p in task.parameters())

    counts = {path.stem: parameters(path) for path in table.glob("*.yaml")}
    for row, count in counts.items():
        assert count == pytest.approx(counts["msssm_s6"], rel=allowed(0.03, "the smallest change of a width")), row
