"""Files from elsewhere: recipes, checkpoints, archives, arrays and headers run nothing and reach nothing outside."""

import contextlib
import os
import socket
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.listops import store
from datamodules.ptbxl import CorruptRecordError, files, read_record
from tasks.cli.main import main
from tests.support import runs
from tests.support.ptbxl import copy_to
from tests.support.recipes import fit, write_recipe

HOSTILE = [
    "os.system",
    "subprocess.Popen",
    "builtins.exec",
    "builtins.eval",
    "torch.hub.load",
    "torch.load",
    "pickle.loads",
    "runpy.run_path",
    "webbrowser.open",
    "tasks.cli.training.subprocess.Popen",
    "tasks.run.provenance.os.system",
    "tasks.cli.main.main",
    "datamodules.base.np.load",
    "lightning.pytorch.trainer.connectors.signal_connector.call",
    "torch.nn.functional.torch.hub.load",
    "torch.nn.modules.module.torch.load",
]


@pytest.fixture
def executed(tmp_path: Path) -> Path:
    """A file that only hostile code would make."""
    return tmp_path / "executed"


PLACES = ["model", "data", "trainer.callbacks", "trainer.logger", "trainer.plugins"]


@pytest.mark.parametrize(
    ("place", "class_path"),
    [("model.backbone.layer", path) for path in HOSTILE] + [(place, "os.system") for place in PLACES],
)
def test_a_recipe_builds_nothing_that_is_not_allowed(
    class_path: str, place: str, tmp_path: Path, executed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path)
    option = f'{{"class_path": "{class_path}", "init_args": {{"command": "touch {executed}"}}}}'
    with pytest.raises(SystemExit, match="2"):
        fit(recipe, f"--{place}={'[' + option + ']' if place == 'trainer.callbacks' else option}")
    assert class_path.rsplit(".", 1)[-1] in capsys.readouterr().err
    assert not executed.exists()
    assert not (tmp_path / "runs").exists()


def test_yaml_tags_build_no_objects(tmp_path: Path, executed: Path) -> None:
    recipe = write_recipe(tmp_path)
    recipe.write_text(recipe.read_text() + f"\nseed_everything: !!python/object/apply:os.system ['touch {executed}']\n")
    with pytest.raises(SystemExit, match="2"):
        fit(recipe)
    assert not executed.exists()


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("command", ["test", "validate", "predict", "fit"])
def test_a_checkpoint_runs_no_code(
    command: str, tmp_path: Path, executed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {}, "msssm": {"format": 1}, "callbacks": _Payload(executed)}, tmp_path / "evil.ckpt")
    arguments = ["--config", str(write_recipe(tmp_path)), f"--ckpt_path={tmp_path}/evil.ckpt"]
    if command == "predict":
        (tmp_path / "expressions").write_text("[MAX 1 2 ]\n")
        arguments.append(f"--data.predict_file={tmp_path}/expressions")
    with pytest.raises(SystemExit, match="2"):
        main([command, *arguments])
    assert "evil.ckpt cannot be read" in capsys.readouterr().err
    assert not executed.exists()


def test_hyperparameters_of_a_checkpoint_name_no_class_to_build(tmp_path: Path, executed: Path) -> None:
    """Lightning before 2.6.6 called what they named."""
    fit(write_recipe(tmp_path, max_epochs=1))
    path = tmp_path / "runs/seed0/checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"] = {"_instantiator": "os.system", "command": f"touch {executed}", "lr": 0.1}
    torch.save(checkpoint, path)
    main(["test", "--config", str(tmp_path / "runs/seed0/config.yaml")])
    assert not executed.exists()


def test_an_archive_writes_nothing_outside(tmp_path: Path) -> None:
    source, archive, target = copy_to(tmp_path), tmp_path / "ptbxl.zip", tmp_path / "deep/in/target"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(source / files.DATABASE, f"ptb-xl/{files.DATABASE}")
        for name in (
            "../escaped",
            "ptb-xl/../../escaped",
            "/escaped",
            f"{tmp_path}/escaped",
            "ptb-xl/records100/../../../x",
        ):
            file.writestr(name, "escaped")
        link = zipfile.ZipInfo("ptb-xl/records100")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, str(tmp_path / "outside"))
        file.writestr("ptb-xl/records100/00000/00001_lr.dat", "escaped?")
    (tmp_path / "outside").mkdir()
    before = {path for path in tmp_path.rglob("*") if target not in path.parents}
    with contextlib.suppress(OSError):
        files.unpack(archive, target, 100)
    after = {
        path for path in tmp_path.rglob("*") if target not in path.parents and path not in (target, *target.parents)
    }
    assert after <= before
    assert not Path("/escaped").exists()
    assert not [path for path in target.rglob("*") if path.is_symlink()]


class _ArrayPayload(_Payload):
    pass


def test_arrays_hold_no_objects(tmp_path: Path, executed: Path) -> None:
    folder = tmp_path / "store"
    expressions = store.Expressions(np.zeros(3, "u1"), np.array([0, 3]), np.zeros(1, "u1"))
    store.build(folder, lambda: dict.fromkeys(store.SPLITS, expressions), {})
    hostile = np.array([_ArrayPayload(executed)], dtype=object)
    for name in ("train.tokens.npy", "test.labels.npy"):
        np.save(folder / name, hostile, allow_pickle=True)
        with pytest.raises(store.BrokenStoreError, match="is damaged"):
            store.load(folder)
    assert not executed.exists()


@pytest.mark.parametrize(
    "name", ["../secret.dat", "{outside}/secret.dat", "http://127.0.0.1:9/x.dat", "s3://a/b.dat", "~/x.dat"]
)
@pytest.mark.parametrize("fmt", ["16", "212"])
def test_a_header_reads_nothing_outside_the_data(
    name: str, fmt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", _no_socket)
    root = tmp_path / "data"
    root.mkdir()
    secret = (np.arange(12000) % 100).astype("<i2").tobytes()
    (tmp_path / "secret.dat").write_bytes(secret)
    file = name.format(outside=tmp_path)
    leads = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
    lines = [f"{file} {fmt} 1000.0(0)/mV 16 0 0 0 0 {lead}" for lead in leads]
    (root / "r.hea").write_text("\n".join(["r 12 100 1000", *lines]) + "\n")
    with pytest.raises(CorruptRecordError):
        read_record(root, "r", 100)
    for record in ("../r", str(tmp_path / "r"), "http://127.0.0.1:9/r"):
        with pytest.raises(CorruptRecordError):
            read_record(root, record, 100)


def _no_socket(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("a socket was opened")


def _no_network() -> None:
    """A fault: every connection and every look-up of a name ends the process at once, with code 99."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        os._exit(99)

    socket.socket.connect = refuse  # type: ignore[method-assign,assignment]
    socket.socket.connect_ex = refuse  # type: ignore[method-assign,assignment]
    socket.socket.sendto = refuse  # type: ignore[method-assign,assignment]
    socket.getaddrinfo = refuse


def _connects() -> None:
    """The guard above, and a connection."""
    _no_network()
    socket.create_connection(("127.0.0.1", 9))


def test_no_command_connects_to_anything(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, max_epochs=1)
    (tmp_path / "expressions").write_text("[MAX 1 2 ]\n")
    log = tmp_path / "log"
    for command in (["fit"], ["test"], ["validate"], ["predict", f"--data.predict_file={tmp_path}/expressions"]):
        assert runs.run([command[0], "--config", str(recipe), *command[1:]], log, _no_network) == 0, log.read_text()
    assert runs.run(["--version"], log, _connects) == 99, "the guard catches a connection"
