"""What a checkpoint survives, and what is said where it cannot be written or read."""

import errno
import os
import resource
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from msssm import __version__
from tasks.run import checkpoint_io
from tasks.run.checkpoint_io import (
    CheckpointFormatError,
    DamagedCheckpointError,
    DurableCheckpointIO,
    previous,
    read_checkpoint,
)
from tasks.run.run import durable_checkpoints
from tests.support import runs
from tests.support.recipes import write_recipe


def _checkpoint(value: int) -> dict[str, Any]:
    return {"global_step": value, "state_dict": {"weight": torch.full((1000,), float(value))}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A last.ckpt that was written twice: step 2 after step 1."""
    path = tmp_path / "last.ckpt"
    for value in (1, 2):
        DurableCheckpointIO().save_checkpoint(_checkpoint(value), path)
    return path


def test_the_previous_one_is_kept(path: Path) -> None:
    assert read_checkpoint(path)["global_step"] == 2
    assert read_checkpoint(previous(path))["global_step"] == 1
    assert sorted(each.name for each in path.parent.iterdir()) == ["last.ckpt", "last.previous.ckpt"]
    DurableCheckpointIO().remove_checkpoint(path)
    assert not list(path.parent.iterdir())


class _Fails:
    """The module `os`, one of whose functions fails at its `at`-th call."""

    def __init__(self, name: str, error: int, at: int = 1) -> None:
        self.name, self.error, self.at = name, error, at

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name != self.name:
            return function

        def failing(*arguments: Any) -> Any:
            self.at -= 1
            if self.at == 0:
                raise OSError(self.error, os.strerror(self.error))
            return function(*arguments)

        return failing


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize(("function", "at"), [("fsync", 1), ("replace", 1), ("replace", 2)])
def test_what_cannot_be_written_leaves_the_old_one_whole(
    path: Path, function: str, at: int, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_io, "os", _Fails(function, error, at))
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*last.ckpt is as it was") as caught:
        DurableCheckpointIO().save_checkpoint(_checkpoint(3), path)
    assert caught.value.errno == error
    assert os.strerror(error) in str(caught.value)
    assert read_checkpoint(path)["global_step"] == 2
    assert read_checkpoint(previous(path))["global_step"] in (1, 2)
    assert ".last.ckpt.unfinished" not in os.listdir(path.parent)


def test_a_file_system_without_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_io, "os", _Fails("link", errno.EPERM))
    DurableCheckpointIO().save_checkpoint(_checkpoint(3), path)
    assert read_checkpoint(path)["global_step"] == 3
    assert read_checkpoint(previous(path))["global_step"] == 2


def test_nothing_passes_through_tmpdir(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    DurableCheckpointIO().save_checkpoint(_checkpoint(3), path)
    assert read_checkpoint(path)["global_step"] == 3


def _limit_files(bytes_: int) -> None:
    """A fault: no file can grow beyond this, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))


def test_a_full_disk_ends_a_run_with_one_line_and_loses_nothing(tmp_path: Path) -> None:
    """Killed in the second epoch, then no room for a checkpoint, then room again: as if nothing had been."""
    recipe = write_recipe(tmp_path)
    command = ["fit", "--config", str(recipe)]
    assert runs.run([*command, f"--run_dir={tmp_path}/whole"], tmp_path / "log") == 0
    command.append(f"--run_dir={tmp_path}/cut")
    assert runs.run(command, tmp_path / "log", partial(runs.kill_at, 15)) == -signal.SIGKILL
    before = (tmp_path / "cut/checkpoints/last.ckpt").read_bytes()
    assert runs.run(command, tmp_path / "full", partial(_limit_files, 20_000)) == 2
    last = (tmp_path / "full").read_text().splitlines()[-1]
    assert "cannot write the checkpoint" in last
    assert "File too large" in last
    assert "is as it was" in last
    assert (tmp_path / "cut/checkpoints/last.ckpt").read_bytes() == before
    assert runs.run(command, tmp_path / "log") == 0
    runs.assert_same(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("size", [0, 1, 100, 1500, 4000])
def test_a_truncated_file_is_named_as_damaged(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedCheckpointError, match=r"last.ckpt cannot be read .*; take another checkpoint"):
        read_checkpoint(path)


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_a_checkpoint_that_holds_code_does_not_run_it(path: Path, tmp_path: Path) -> None:
    torch.save({**_checkpoint(3), "hyper_parameters": _Payload(tmp_path / "ran")}, path)
    for weights_only in (True, False, None):
        with pytest.raises(DamagedCheckpointError, match="holds more than tensors and plain values"):
            DurableCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists(), "the payload works where nothing guards against it"


@pytest.mark.parametrize(
    ("stamp", "message"),
    [
        ({"format": 99, "version": "7.0"}, f"format 99, written by msssm 7.0; msssm {__version__} reads format 1"),
        ({"format": "x"}, f"format 'x', written by msssm None; msssm {__version__} reads format 1"),
        (None, f"no format of msssm; msssm {__version__} reads format 1: see docs/checkpoints.md"),
    ],
)
def test_another_format_is_named_with_both_versions(path: Path, stamp: Any, message: str) -> None:
    torch.save({**_checkpoint(3), **({} if stamp is None else {"msssm": stamp})}, path)
    with pytest.raises(CheckpointFormatError) as caught:
        read_checkpoint(path)
    assert message in str(caught.value)


def test_a_plugin_of_the_recipe_wraps_ours_or_is_refused() -> None:
    wrapping = AsyncCheckpointIO()
    assert durable_checkpoints(wrapping) == [wrapping]
    assert isinstance(wrapping.checkpoint_io, DurableCheckpointIO)
    assert isinstance(durable_checkpoints(None)[-1], DurableCheckpointIO)
    for plugin in (TorchCheckpointIO(), AsyncCheckpointIO(TorchCheckpointIO())):
        with pytest.raises(ValueError, match="would replace the checkpoints that survive a crash"):
            durable_checkpoints([plugin])
