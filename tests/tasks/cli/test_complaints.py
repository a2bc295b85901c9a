"""What the user did gets one message; a bug keeps its traceback, wherever it lies."""

import json
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
    "unpacking": lambda: [first for first, second in [(1, 2, 3)]],  # type: ignore[misc]
    "numpy": lambda: np.zeros(3) + np.zeros(4),
    "int": lambda: int("x"),
    "float": lambda: float("x"),
    "json": lambda: json.loads("{"),
    "key": lambda: {}["x"],
    "index": lambda: [][0],
    "type": lambda: None + 1,  # type: ignore[operator]
    "attribute": lambda: None.x,  # type: ignore[attr-defined]
    "file": lambda: Path("/nowhere/at/all").read_text(),
    "import": lambda: __import__("not_a_package"),
    "torch": lambda: torch.zeros(2).view(3),
}


def raised(bug: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        bug()
    return caught.value


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_a_bug_is_no_complaint(bug: Callable[[], Any]) -> None:
    assert complaint(raised(bug)) is None


@pytest.mark.parametrize("name", ["InputError", "MissingFileError", "StorageError"])
def test_what_the_user_did_is_one(name: str) -> None:
    error = getattr(msssm.errors, name)("asked for x, got y")
    assert complaint(error) == "asked for x, got y"
    outer = RuntimeError("around it")
    outer.__cause__ = error
    assert complaint(outer) == "asked for x, got y"


def test_a_system_that_refuses_a_file_is_one(tmp_path: Path) -> None:
    error = raised(lambda: (tmp_path / ("x" * 300)).write_text(""))
    assert complaint(error) == str(error)
    assert "File name too long" in str(error)


PLACES = {
    "forward": "tasks.ListOpsTask.forward",
    "setup": "datamodules.ListOpsDataModule.setup",
    "loader": "datamodules.ListOpsDataModule.train_dataloader",
    "constructor of the task": "tasks.base.Predictions",
    "constructor of a layer": "msssm.multiscale.MultiScaleDecomposition",
    "constructor of the data": "datamodules.listops.datamodule.TreeParameters",
    "report": "tasks.ListOpsTask.report",
}


@pytest.mark.parametrize("kind", ["zip", "key"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_bug_keeps_its_traceback(place: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        return BUGS[kind]()

    monkeypatch.setattr(place, broken)
    with pytest.raises((ValueError, KeyError), match=r"zip|x") as caught:
        fit(write_recipe(tmp_path, max_epochs=1))
    assert type(caught.value) in (ValueError, KeyError)


def test_so_does_one_in_the_constructor_of_a_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose option may be of several types, so that the parser would tell it as a wrong type."""

    def broken(self: Any, limit: int = 1) -> None:
        BUGS["zip"]()

    monkeypatch.setattr("tasks.SkipBadBatches.__init__", broken)
    with pytest.raises(ValueError, match=r"^zip\(\) argument 2 is longer"):
        fit(write_recipe(tmp_path), "--trainer.callbacks+=tasks.SkipBadBatches")


@pytest.mark.parametrize("command", COMMANDS)
def test_so_does_one_in_every_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: list[str]) -> None:
        BUGS["unpacking"]()

    monkeypatch.setattr(f"{COMMANDS[command]}.main", broken)
    with pytest.raises(ValueError, match="too many values to unpack"):
        main([command])
