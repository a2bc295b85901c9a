"""The recipes and the experiments that come with msssm: all go through the live command line."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.cli.load import _Builder, build
from tasks.cli.main import main
from tasks.table.files import CONFIGS, EXPERIMENTS, recipes, table_file, tables
from tasks.table.spec import read_table, row_recipe, text, with_options
from tests.support import cifar10, images, ptbxl
from tests.support.recipes import TINY_DATA

NETWORKS = [name for name in tables() if name.split("/")[0] in ("quick", "medium", "small", "paper")]


@pytest.fixture(scope="module")
def ptbxl_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ptbxl.copy_to(tmp_path_factory.mktemp("root")).parent


@pytest.fixture(scope="module")
def built() -> _Builder:
    return build("listops", [])


def _small_data(recipe: dict[str, Any], folder: Path, request: pytest.FixtureRequest) -> list[str]:
    """Options that put data in place of the recipe's that are made in a second."""
    if recipe["data"]["class_path"] == "datamodules.PTBXLDataModule":
        root = request.getfixturevalue("ptbxl_root")
        small = ["--data.batch_size=2", "--data.eval_batch_size=20", "--data.num_workers=0"]
        return [*small, f"--data.root={root}", "--data.synthetic=null"]
    if recipe["data"]["class_path"] == "datamodules.SequentialCIFARDataModule":
        cifar10.accept_tiny(request.getfixturevalue("monkeypatch"))
        cifar10.write_folder(folder / "cifar10")
        return [f"--data.root={folder}", "--data.batch_size=4"]
    if recipe["data"]["class_path"] == "datamodules.DigitsDataModule":
        return ["--data.batch_size=4"]
    if recipe["data"]["class_path"] == "datamodules.ImageNetDataModule":
        images.write_folder(folder / ("imagenette" if "source" in recipe["data"]["init_args"] else "imagenet"))
        small = ["--data.batch_size=4", "--data.num_workers=0", "--data.holdout=2", "--model.backbone.d_model=16"]
        return [*small, f"--data.root={folder}", f"--model.num_classes={len(images.CLASSES)}"]
    if recipe["data"]["class_path"] == "datamodules.SelectiveCopyingDataModule":
        return ["--data.train_size=100", "--data.val_size=50"]
    if recipe["data"]["class_path"] == "datamodules.ArrayDataModule":
        return []
    return [*TINY_DATA, f"--data.root={folder}"]


# One of each task and data module, and those whose options are more than a layer's.
REHEARSED = [
    *recipes(),
    *(f"quick/{task}/msssm_s6" for task in ("copying", "counting", "digits", "listops", "ptbxl")),
    "small/imagenette/msssm_s6",
    "choices/listops/averaged-weights",
    "choices/listops/bidirectional",
]


@pytest.mark.parametrize("name", REHEARSED)
def test_recipe_trains_and_validates(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    recipe = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) if name in recipes() else row_recipe(name)
    rehearsal = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--model.backbone.n_layers=1"]
    data = _small_data(recipe, tmp_path, request)
    main(["fit", "--config", name, *rehearsal, *data, f"--run_dir={tmp_path}/run"])
    monitor = recipe.get("checkpoint", {}).get("monitor", "val/accuracy")
    assert f"{monitor} " in capsys.readouterr().out
    assert not (tmp_path / "run").exists(), "a rehearsal leaves nothing behind"


@pytest.mark.parametrize(
    "name",
    [
        name if name.startswith(("quick/", "paper/")) else pytest.param(name, marks=pytest.mark.slow)
        for name in tables()
    ],
)
def test_every_row_resolves_and_builds(name: str, built: _Builder, tmp_path: Path) -> None:
    """Of the reduced tables of networks, with as many parameters as MS-SSM(S6), within 3 %."""
    table, path, counts = read_table(table_file(name)), tmp_path / "recipe.yaml", {}
    for row in table.rows:
        path.write_text(text(table.recipe(row)))
        task = built.again(path, [])
        if task is None:
            build(path, [])  # says what is wrong
        assert task is not None, row
        counts[row] = sum(p.numel() for p in task.parameters())
    if name in NETWORKS and table.experiment != "paper":
        for row, count in counts.items():
            assert 0.97 < count / counts["msssm_s6"] < 1.03, row


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """`model.backbone.d_model` and its value, and so on; classes by their `class_path`."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, path if name == "init_args" else f"{path}.{name}".strip("."))
    else:
        yield path, node


@pytest.mark.parametrize("name", tables())
def test_the_rows_of_a_table_differ_only_in_what_their_entries_say(name: str) -> None:
    """In a table of networks, that is the network: same data, same training budget, same optimiser.

    Those of small/ptbxl and small/scifar may have learning rates of their own, searched on the validation
    (docs/results/small/search*.csv; Mamba's of small/scifar are those of small/ptbxl). A whole backbone of another
    kind may need a position embedding.
    """
    own = ("model.backbone", "model.position_embedding")
    own += ("model.lr", "model.ssm_lr") if name in ("small/ptbxl", "small/scifar") else ()
    table = read_table(table_file(name))
    base = dict(_leaves(with_options(table.base, table.budget)))
    assert table.experiment == "ladder" or not next(iter(table.rows.values())).options, "the first row is the base"
    for row, entry in table.rows.items():
        recipe = dict(_leaves(table.recipe(row)))
        changed = {key for key in base.keys() | recipe.keys() if base.get(key) != recipe.get(key)}
        changed -= {"run_dir", "seed_everything"}
        said = tuple(entry.options)
        assert all(key.startswith(said) for key in changed), row
        assert all(any(key.startswith(option) for key in changed) for option in said), f"{row} says what it has anyway"
        if name in NETWORKS:
            assert all(option.startswith(own) for option in said), row


@pytest.mark.parametrize("path", [*CONFIGS.glob("*.yaml"), *EXPERIMENTS.glob("*/*.yaml")], ids=lambda path: path.stem)
def test_the_header_names_its_own_command(path: Path) -> None:
    header = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    own = f"msssm experiment {path.parent.name}( --tasks {path.stem})?\\b"
    if path.parent == CONFIGS:
        own = f"msssm fit --config (configs/)?{path.stem}\\b"
    assert re.search(own, header)


# Layers, width, K; learning rate, weight decay, dropout, norm; epochs, of which warm-up; batch: the paper's appendix.
PAPER = {
    "scifar": (10, 256, 2, 0.0045, 0.01, 0.25, "batch", 250, 1, 50),
    "listops": (20, 128, 4, 0.003, 0.03, 0.1, "batch", 100, 1, 50),
    "ptbxl": (10, 256, 2, 0.0045, 0.06, 0.2, "layer", 100, 5, 50),
    "imagenet": (24, 256, 4, 0.001, None, None, None, 300, 10, 1024),
}


@pytest.mark.parametrize("name", PAPER)
def test_recipes_called_the_papers_hold_the_papers_numbers(name: str) -> None:
    """What the paper leaves open is None here: the headers name our choices."""
    recipe = row_recipe(f"paper/{name}/msssm_s6")
    model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    backbone = model["backbone"]["init_args"]
    layer = backbone["layer"]["init_args"]
    ours = (
        *(backbone["n_layers"], backbone["d_model"], layer["kernel_size"]),
        *(model["lr"], model["weight_decay"], backbone["dropout"], backbone["norm"]),
        *(recipe["trainer"]["max_epochs"], model["warmup_epochs"], data["batch_size"]),
    )
    assert all(theirs is None or our == theirs for our, theirs in zip(ours, PAPER[name], strict=True))
    assert (layer["levels"], layer["ssm"], layer["mixer"], layer["initialization"]) == (3, "s6", "input", "scale")
    assert layer["discretization"] == "zoh"
