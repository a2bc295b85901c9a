"""One form for every path that a user writes."""

from pathlib import Path

import pytest

from datamodules import ImageNetDataModule, ListOpsDataModule, PTBXLDataModule, SequentialCIFARDataModule
from msssm.paths import local_path
from tasks.run.resume import changes


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, with a variable, a folder and a link to one far away."""
    home = tmp_path / "home"
    (home / "far/away").mkdir(parents=True)
    (home / "link").symlink_to("far/away")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SCRATCH", f"{home}/scratch")
    monkeypatch.delenv("NOT_SET", raising=False)
    return home


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~/runs/x", "runs/x"),
        ("~/runs/x/", "runs/x"),
        ("~/./runs//x", "runs/x"),
        ("$SCRATCH/x", "scratch/x"),
        ("${SCRATCH}/x", "scratch/x"),
        ("~/runs/../x", "x"),
        ("~/link/../x", "far/x"),  # where the system goes, not where the text seems to
        ("~/link/x", "link/x"),
        ("~/a$b", "a$b"),
    ],
)
def test_a_path_has_one_form(home: Path, text: str, expected: str) -> None:
    assert local_path(text) == home / expected


def test_what_is_relative_stays_so(home: Path) -> None:
    assert local_path("runs/x/") == Path("runs/x")


@pytest.mark.parametrize("text", ["", "s3://bucket/x", "~nobody_of_this_name/x", "$NOT_SET/x", "x/${NOT_SET}"])
def test_what_names_nothing_here_is_refused(home: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"expected the path of|is not known here"):
        local_path(text)


def test_data_modules_take_the_same_paths(home: Path) -> None:
    options = {"batch_size": 2}
    listops = ListOpsDataModule("~/d/", tsv_dir="$SCRATCH/t", predict_file="~/e.txt", **options)  # type: ignore[arg-type]
    assert (listops.root, listops.tsv_dir, listops.predict_file) == (home / "d", home / "scratch/t", home / "e.txt")
    ptbxl = PTBXLDataModule(root="~/d", source="~/s", **options)  # type: ignore[arg-type]
    assert (ptbxl.folder, ptbxl.source) == (home / "d/ptbxl", home / "s")
    cifar = SequentialCIFARDataModule(root="~/d", source="~/s", **options)  # type: ignore[arg-type]
    assert (cifar.folder, cifar.source) == (home / "d/cifar10", home / "s")
    assert ImageNetDataModule(root="~/d", **options).source == home / "d/imagenet"  # type: ignore[arg-type]


def recipe(**options: object) -> dict[str, object]:
    """A recipe as config.yaml holds it, with some of its options as given."""
    trainer = {"devices": 1, "max_epochs": 2, "log_every_n_steps": 50, "callbacks": None, "precision": None}
    data = {"num_workers": 0, "root": "data", "batch_size": 4, "dataset": ""}
    return {
        "model": {"class_path": "tasks.ListOpsTask", "init_args": {"lr": 0.1}},
        "data": {"class_path": "datamodules.X", "init_args": data | {k: v for k, v in options.items() if k in data}},
        "trainer": trainer | {k: v for k, v in options.items() if k in trainer},
        "run_dir": options.get("run_dir", "runs/x"),
    }


@pytest.mark.parametrize(
    ("options", "close", "refused"),
    [
        ({}, [], []),
        ({"num_workers": 4, "log_every_n_steps": 7, "run_dir": "elsewhere"}, [], []),
        ({"root": "./data/"}, [], []),
        ({"root": "other"}, [], ["data.init_args.root"]),
        ({"devices": 2}, ["trainer.devices"], []),
        ({"max_epochs": 3}, [], ["trainer.max_epochs"]),
        ({"precision": "bf16-mixed", "batch_size": 8}, [], ["data.init_args.batch_size", "trainer.precision"]),
        ({"callbacks": [{"class_path": "tasks.run.dashboard.EpochLines"}]}, [], []),
        ({"callbacks": [{"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"}]}, [], []),
        ({"callbacks": [{"class_path": "tasks.SkipBadBatches"}]}, [], ["trainer.callbacks"]),
    ],
)
def test_what_may_change_in_a_resumed_run(options: dict[str, object], close: list[str], refused: list[str]) -> None:
    found = changes(recipe(), recipe(**options), Path("runs/x/checkpoints/last.ckpt"))
    assert (list(found.close), list(found.refused)) == (close, refused)
