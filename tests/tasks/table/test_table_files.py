"""A table as data: what a row's recipe is, and what is said of a wrong entry."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from msssm.errors import InputError
from tasks.table.files import experiment_files, table_file
from tasks.table.spec import named_recipe, read_table, with_options

LAYER = {"class_path": "msssm.MultiScaleSSM", "init_args": {"levels": 3, "ssm": "s6"}}
BACKBONE = {"class_path": "msssm.Backbone", "init_args": {"d_model": 8, "layer": LAYER}}
BASE = {"model": {"class_path": "tasks.ListOpsTask", "init_args": {"lr": 0.1, "backbone": BACKBONE}}}


def write(folder: Path, **content: Any) -> Path:
    path = folder / "listops.yaml"
    path.write_text(yaml.safe_dump({"base": BASE, "rows": {"a": {"label": "A"}}, **content}))
    return path


def test_an_option_goes_into_its_class_and_leaves_the_base_alone() -> None:
    changed = with_options(BASE, {"model.backbone.layer.levels": 0, "model.lr": 1, "trainer.max_steps": 5})
    assert changed["model"]["init_args"]["backbone"]["init_args"]["layer"]["init_args"] == {"levels": 0, "ssm": "s6"}
    assert changed["model"]["init_args"]["lr"] == 1
    assert changed["trainer"] == {"max_steps": 5}
    assert LAYER["init_args"] == {"levels": 3, "ssm": "s6"}


def test_a_class_takes_the_place_of_another_with_all_its_options() -> None:
    other = {"class_path": "msssm.baselines.S4D", "init_args": {"state_size": 2}}
    changed = with_options(BASE, {"model.backbone.layer": other, "model.backbone.layer.state_size": 4})
    assert changed["model"]["init_args"]["backbone"]["init_args"]["layer"]["init_args"] == {"state_size": 4}
    assert other["init_args"] == {"state_size": 2}, "two rows may hold the same object"


def test_a_table_takes_base_rows_labels_and_numbers_from_others() -> None:
    quick, medium, paper = (read_table(table_file(f"{name}/listops")) for name in ("quick", "medium", "paper"))
    assert medium.rows == quick.rows
    assert medium.base["data"]["init_args"].pop("train_size") == 300_000
    assert medium.base["model"] == quick.base["model"]
    assert quick.rows["mamba"].label == "Mamba"
    assert quick.rows["mamba"].paper == paper.rows["mamba"].paper == 38.02
    assert quick.quoted == paper.quoted != {}
    assert quick.column == replace(paper.column, data=quick.column.data)
    assert read_table(table_file("ladder/ptbxl")).column == read_table(table_file("paper/ptbxl")).column


def test_the_example_of_the_docs_is_a_table(tmp_path: Path) -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", Path("docs/experiments.md").read_text(), re.S)
    (tmp_path / "listops.yaml").write_text(example)
    table = read_table(tmp_path / "listops.yaml")
    assert (list(table.rows), table.seeds, table.compare) == (["plain", "wide", "mine"], (0, 1), "plain")
    assert table.recipe("wide")["model"]["init_args"]["backbone"]["init_args"]["d_model"] == 128


def test_the_rows_of_ablations_over_another_base_have_its_own_budget() -> None:
    table = read_table(table_file("ablations/listops"))
    assert table.recipe("euler")["trainer"]["max_steps"] == 1200
    medium = table.of("medium")
    assert medium.recipe("full")["data"]["init_args"]["train_size"] == 300_000
    assert "max_steps" not in medium.recipe("full")["trainer"]
    assert medium.rows == table.rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"row": {}}, "there is no key 'row'; there are base, options, budget, rows"),
        ({"rows": {"a": {"label": "A", "option": {}}}}, "row a: there is no key 'option'; there are label, paper"),
        ({"rows": {"a": {}}}, "row a: label is missing"),
        ({"rows": {"a": 3}}, "row a must be a mapping with label, paper, options, got 3"),
        ({"rows": {"a": {"label": "A", "paper": "63"}}}, "row a: paper must be int or float or dict, got '63'"),
        ({"rows": {"a": {"label": "A", "paper": {"all": "x"}}}}, "row a: paper must be a number, or one for each"),
        ({"rows": {"a": {"label": "A", "options": {"lr": 1}}}}, "row a: options: 'lr' is not the name of an option"),
        ({"rows": {"a": {"label": "A", "options": {"model..lr": 1}}}}, "row a: options: 'model..lr' is not the name"),
        ({"rows": "quick/nothing"}, "rows: the experiment quick has no task 'nothing'"),
        ({"base": "nothing"}, "base: there is no recipe 'nothing'; there are imagenet, listops, ptbxl, scifar"),
        ({"reference": "nothing/x"}, "reference: there is no experiment 'nothing'; there are ablations"),
        ({"quoted": {"S5": "many"}}, "quoted, S5 must be a number"),
        ({"compare": "b"}, "compare: there is no row 'b'; there are a"),
        ({"seeds": [0, -1]}, "seeds must be whole numbers from 0, got [0, -1]"),
        ({"seeds": []}, "seeds must be whole numbers from 0, got []"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"threads": True}, "threads must be int, got True"),
        ({"column": {"metrik": "test/auroc"}}, "column: there is no key 'metrik'; there are metric, name, unit"),
        ({"column": {"digits": "two"}}, "column: digits must be int, got 'two'"),
        ({"column": {"direction": "up"}}, "column: direction must be higher or lower, got 'up'"),
        ({"column": {"range": [0]}}, "column: range must be the least and the greatest value, got [0]"),
    ],
)
def test_a_wrong_entry_is_named(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, **content)
    with pytest.raises(InputError, match="^" + re.escape(f"{path}: {message}")):
        read_table(path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text("rows: {a: {label: A}}")
    with pytest.raises(ValueError, match="base is missing"):
        read_table(path)
    path.write_text("rows: {a: {label: A}, a: {label: B}}")
    with pytest.raises(ValueError, match=r"listops.yaml: line 1 has a a second time"):
        read_table(path)
    with pytest.raises(ValueError, match=r"quick/listops has no row 'x'; it has msssm_s6, "):
        read_table(table_file("quick/listops")).recipe("x")


def test_tables_that_refer_to_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.table.files.EXPERIMENTS", tmp_path)
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        write(tmp_path / name, base=f"{other}/listops")
    with pytest.raises(ValueError, match="the tables refer to each other in a circle"):
        read_table(table_file("a/listops"))


def test_an_experiment_is_a_name_or_a_folder(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert experiment_files(str(tmp_path)) == [path]
    assert [path.stem for path in experiment_files("quick", ["ptbxl", "listops"])] == ["ptbxl", "listops"]
    for name in ("", "nothing", str(path), str(tmp_path / "nothing")):
        with pytest.raises(ValueError, match="there is no experiment"):
            experiment_files(name)


def test_a_recipe_is_a_file_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path)
    assert named_recipe(str(file)) == file
    assert named_recipe("listops") == Path("configs/listops.yaml").resolve()
    row = yaml.safe_load(named_recipe("quick/listops/s4d").read_text())
    assert row["run_dir"] == "runs/quick/listops/s4d/seed${seed_everything}"
    assert named_recipe("missing.yaml") == Path("missing.yaml"), "which the caller finds missing"
    with pytest.raises(ValueError, match=r"quick/listops has no row 'x'"):
        named_recipe("quick/listops/x")
    with pytest.raises(FileNotFoundError, match=r"none of that name: there are imagenet, listops"):
        named_recipe("lisstops")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "listops").write_text("a file of one's own goes first")
    assert named_recipe("listops") == Path("listops")
