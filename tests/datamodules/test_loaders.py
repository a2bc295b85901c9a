"""What all data modules share: lost workers named in one line, and the model's random numbers left alone."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from datamodules import (
    ArrayDataModule,
    DigitsDataModule,
    ImageNetDataModule,
    ListOpsDataModule,
    PTBXLDataModule,
    SelectiveCopyingDataModule,
    SequentialCIFARDataModule,
    loader,
)
from datamodules.base import DataModule
from datamodules.batching import LengthBucketBatchSampler
from datamodules.loader import WORKER_TIMEOUT, Loader, ResumableLoader, WorkerError, worker_options
from msssm.errors import InputError, MissingFileError
from tasks.complaints import complaint
from tests.support import cifar10, images, ptbxl


class _Faulty(Dataset[Any]):
    """Does something else than giving a batch."""

    def __init__(self, fault: Callable[[], object]) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 4

    def __getitem__(self, indices: list[int]) -> Any:
        self.fault()


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hanging() -> None:
    time.sleep(0.5)


def _misses() -> None:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise MissingFileError("expected /x, got no such file; look for it") from error


def _bug() -> None:
    raise ValueError("of the program")


def _loaders(fault: Callable[[], object]) -> list[Loader]:
    dataset = _Faulty(fault)
    sampler = LengthBucketBatchSampler(np.ones(4), 2, seed=0)
    return [
        ResumableLoader(dataset, sampler, num_workers=1),
        Loader(dataset, batch_size=None, sampler=sampler, **worker_options(1)),
    ]


@pytest.mark.parametrize("kind", [0, 1])
def test_a_killed_worker_is_named_in_one_line(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where something else has taken torch's place as the handler of SIGCHLD, the wait ends the question.
    monkeypatch.setattr(loader, "WORKER_TIMEOUT", 2)
    with pytest.raises(RuntimeError) as caught:
        next(iter(_loaders(_killed)[kind]))
    reason = complaint(caught.value)  # also where torch's signal handler raises far from the loader
    assert reason is not None
    assert reason.startswith("a loader process was lost: worker (pid")
    assert "killed by signal: Killed" in reason or "exited unexpectedly" in reason
    assert "--data.num_workers" in reason
    assert "\n" not in reason


@pytest.mark.parametrize("kind", [0, 1])
def test_a_worker_that_hangs_is_named_in_one_line(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "WORKER_TIMEOUT", 0.2)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # for it to end
    with pytest.raises(
        WorkerError, match=r"^a loader process was lost: timed out after 0.2 seconds; .* again$"
    ) as caught:
        next(iter(_loaders(_hanging)[kind]))
    assert complaint(caught.value) == str(caught.value)


@pytest.mark.parametrize("kind", [0, 1])
def test_what_a_worker_says_of_bad_input_comes_without_its_traceback(kind: int) -> None:
    before = active_children()
    with pytest.raises(MissingFileError) as caught:
        next(iter(_loaders(_misses)[kind]))
    assert set(active_children()) <= set(before), "its processes are gone, and nothing waits for them later"
    assert str(caught.value) == "expected /x, got no such file; look for it"
    with pytest.raises(ValueError, match=r"(?s)Original Traceback.*of the program") as bug:
        next(iter(_loaders(_bug)[kind]))
    assert not isinstance(bug.value, InputError), "a fault of the program keeps its traceback"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[DataModule]:
    """Every data module, with two loader processes."""
    cifar10.accept_tiny(monkeypatch)
    cifar10.write_folder(tmp_path / "cifar10" / "cifar-10-batches-py")
    images.write_folder(tmp_path / "imagenet")
    ptbxl.copy_to(tmp_path)
    root, options = str(tmp_path), {"num_workers": 2, "batch_size": 6}
    made: list[DataModule] = [
        ListOpsDataModule(root, 6, 4, 30, 4, 4, train_size=12, val_size=6, test_size=6, num_workers=2),
        PTBXLDataModule(root, label_set="superdiagnostic", **options),
        SequentialCIFARDataModule(root, **options),
        DigitsDataModule(**options),
        SelectiveCopyingDataModule(train_size=12, val_size=6, test_size=6, **options),
        ImageNetDataModule(root, image_size=16, **options),
        ArrayDataModule(**options),
    ]
    for data in made:
        data.prepare_data()
        data.setup("fit")
    return made


def test_all_data_modules_have_the_same_loaders(modules: list[DataModule]) -> None:
    for data in modules:
        for made in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
            assert isinstance(made, Loader)
            assert made.timeout == WORKER_TIMEOUT == 300
            assert made.persistent_workers
            assert made.num_workers == 2
            assert isinstance(made.generator, torch.Generator)
        about = data.describe()
        assert about["counts"].keys() == {"train", "val", "test"}
        assert about["digest"] == data.digest


def test_loading_leaves_the_models_random_numbers_alone(modules: list[DataModule]) -> None:
    """A training that is validated more often is the same training."""
    for data in modules:
        data.num_workers = 0
        for made in (data.train_dataloader(), data.val_dataloader()):
            before = torch.get_rng_state()
            next(iter(made))
            assert torch.equal(torch.get_rng_state(), before), type(data).__name__


def test_data_that_is_not_there_yet_says_what_to_call(tmp_path: Path) -> None:
    for data in (
        ListOpsDataModule(str(tmp_path)),
        PTBXLDataModule(str(tmp_path)),
        DigitsDataModule(),
        ImageNetDataModule(),
        ArrayDataModule(),
    ):
        for ask in (data.train_dataloader, data.val_dataloader, data.test_dataloader, data.describe):
            with pytest.raises(RuntimeError, match=r"got none; call prepare_data\(\) and setup\(\) first"):
                ask()
