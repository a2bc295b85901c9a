"""What the user did gets a short message and exit code 2; a bug keeps its traceback, wherever it lies."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import msssm.errors
from tasks.cli.main import COMMANDS, main
from tasks.complaints import complaint
from tests.support.recipes import fit, write_recipe

BUGS: dict[str, Callable[[], Any]] = {
    "zip": lambda: list(zip([1], [1, 2], strict=True)),
    "numpy": lambda: np.zeros(3) + np.zeros(4),
    "key": lambda: {}["x"],
    "file": lambda: Path("/nowhere/at/all").read_text(),
    "torch": lambda: torch.zeros(2).view(3),
}


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--trainer.max_steps=abc", r"max_steps.*abc"),
        ("--model.lr=-1", r"lr must be positive, got -1\.0"),
        ("--model.lr=fast", r"lr.*fast"),
        ("--model.backbone.layer.levels=-1", "levels must be at least 0, got -1"),
        ("--model.backbone.init_args.layer.init_args.levelz=3", "levelz"),
        ("--data.batchsize=3", "batchsize"),
        ("--model.backbone.layer.class_path=os.system", r"os\.system"),
        ("--trainer.gradient_clip_val=-2", r"gradient_clip_val must be at least 0, got -2\.0"),
        ("--trainer.callbacks+=EarlyStopping", "monitor"),
        ("--trainer.strategy=nonsense", "You selected an invalid strategy name: `strategy='nonsense'`"),
        ("--trainer.accelerator=abacus", "You selected an invalid accelerator name: `accelerator='abacus'`"),
        ("--trainer.val_check_interval=1000", "`val_check_interval`"),
        ("--nonsense=3", "nonsense"),
        ("--run_dir", "run_dir"),
    ],
)
def test_a_wrong_option_is_named(option: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        fit(write_recipe(tmp_path), option)
    shown = capsys.readouterr().err
    message = shown[shown.index("msssm: ") :]
    assert re.search(told, message, re.DOTALL)
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds nothing, expected options by name"),
        (b"- a\n- b\n", "holds a list, expected options by name"),
        (b"run_dir: caf\xe9\n", "is not text in UTF-8"),
        (b"model:\n\tlr: 1\n", "is not YAML: .* line 2"),
        (b"model:\n  lr: 1\n  lr: 2\n", ": line 3 has lr a second time; remove one"),
        (b"run_dir: ${nowhere}\n", "nowhere"),
        (None, "got a folder"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(
    content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", str(path)])
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("words", [[], ["--config"], ["recipe.yaml"]])
def test_a_command_without_a_recipe_asks_for_one(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["fit", *words])
    assert capsys.readouterr().err.strip().endswith("; name a recipe: --config x.yaml")


@pytest.mark.parametrize("name", ["InputError", "MissingFileError", "StorageError"])
def test_our_own_errors_are_complaints_also_as_causes(name: str) -> None:
    error = getattr(msssm.errors, name)("asked for x, got y")
    assert complaint(error) == "asked for x, got y"
    outer = RuntimeError("around it")
    outer.__cause__ = error
    assert complaint(outer) == "asked for x, got y"


def test_a_system_that_refuses_a_file_is_a_complaint(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long") as caught:
        (tmp_path / ("x" * 300)).write_text("")
    assert complaint(caught.value) == str(caught.value)


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_a_bug_is_no_complaint(bug: Callable[[], Any]) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        bug()
    assert complaint(caught.value) is None


@pytest.mark.parametrize(
    "place",
    [
        "tasks.ListOpsTask.forward",
        "datamodules.ListOpsDataModule.setup",
        "datamodules.ListOpsDataModule.train_dataloader",
        "msssm.multiscale.MultiScaleDecomposition",
        "tasks.ListOpsTask.report",
    ],
)
def test_a_bug_keeps_its_traceback(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        return BUGS["zip"]()

    monkeypatch.setattr(place, broken)
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is longer"):  # the parser adds where it was
        fit(write_recipe(tmp_path, max_epochs=1))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bug_in_a_command_keeps_its_traceback(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{COMMANDS[command]}.main", lambda args: BUGS["zip"]())
    with pytest.raises(ValueError, match=r"^zip\(\) argument 2 is longer"):
        main([command])
