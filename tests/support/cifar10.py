"""A tiny CIFAR-10 in the layout of the published archive."""

import io
import pickle
import tarfile
from hashlib import md5
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from torchvision.datasets import CIFAR10

from datamodules.images import cifar10_files as files

ROWS = 20  # of a batch file; 10,000 in CIFAR-10
NAMES = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
META = CIFAR10.meta["filename"]


def images(seed: int = 0) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """(120, 3, 32, 32) images and (120,) classes, balanced."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([rng.permutation(np.arange(ROWS) % 10) for _ in NAMES])
    return rng.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8), labels.astype(np.uint8)


def contents() -> dict[str, bytes]:
    """Name and content of the six batch files, and of the names of the classes."""
    pixels, labels = images()
    made = {META: pickle.dumps({"label_names": list(files.CLASS_NAMES)}, protocol=2)}
    for index, name in enumerate(NAMES):
        own = slice(index * ROWS, (index + 1) * ROWS)
        batch = {"data": pixels[own].reshape(ROWS, -1), "labels": labels[own].tolist()}
        made[name] = pickle.dumps(batch, protocol=2)
    return made


def write_folder(folder: Path) -> Path:
    """The batches as files of `folder`."""
    folder.mkdir(parents=True)
    for name, content in contents().items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path: Path) -> Path:
    """A tar.gz as published, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents().items():
            member = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def accept_tiny(monkeypatch: pytest.MonkeyPatch, archive: Path | None = None) -> None:
    """Takes the tiny batches, and this archive, for the published ones."""
    digests = {name: md5(content).hexdigest() for name, content in contents().items()}
    monkeypatch.setattr(files.Batches, "train_list", [[name, digests[name]] for name in NAMES[:-1]])
    monkeypatch.setattr(files.Batches, "test_list", [[NAMES[-1], digests[NAMES[-1]]]])
    monkeypatch.setattr(files.Batches, "meta", {**CIFAR10.meta, "md5": digests[META]})
    monkeypatch.setattr(files, "COUNTS", {"train": ROWS // 2, "test": ROWS // 10})
    if archive is not None:
        monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive.read_bytes()).hexdigest())
