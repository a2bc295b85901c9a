"""A tiny CIFAR-10 in the true formats of both published versions."""

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from datamodules.cifar10 import convert, files

ROWS = 20  # of a batch file; 10,000 in CIFAR-10
NAMES = files.BATCHES[0]


def images(seed: int = 0) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """(120, 3, 32, 32) images and (120,) classes, balanced."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([rng.permutation(np.arange(ROWS) % 10) for _ in NAMES])
    return rng.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8), labels.astype(np.uint8)


def python_batch(pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], label: str = "batch") -> bytes:
    """What Python 2's cPickle wrote: protocol 2, strings of bytes, an array by numpy.core.multiarray._reconstruct."""
    content = pixels.tobytes()
    rows = len(labels)
    return b"".join(
        (
            b"\x80\x02}(",
            _string(b"batch_label") + _string(label.encode()),
            _string(b"labels") + b"](" + b"".join(b"K" + bytes([c]) for c in labels) + b"e",
            _string(b"data") + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01" + _int(rows) + _int(3072) + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<i", len(content)) + content + b"tb",
            _string(b"filenames") + b"](" + b"".join(_string(b"image_%d.png" % n) for n in range(rows)) + b"e",
            b"u.",
        )
    )


def binary_batch(pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> bytes:
    """Rows of one byte label and 3,072 of pixels."""
    return np.concatenate((labels[:, None], pixels.reshape(len(labels), -1)), axis=1).tobytes()


def contents(version: str = "python", seed: int = 0) -> dict[str, bytes]:
    """Name and content of the six batch files."""
    pixels, labels = images(seed)
    made = {}
    for index, name in enumerate(NAMES):
        own = slice(index * ROWS, (index + 1) * ROWS)
        if version == "python":
            made[name] = python_batch(pixels[own], labels[own])
        else:
            made[f"{name}.bin"] = binary_batch(pixels[own], labels[own])
    return made


def write_folder(folder: Path, version: str = "python") -> Path:
    """The batches as files of `folder`."""
    folder.mkdir(parents=True)
    for name, content in contents(version).items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path: Path, files_: dict[str, bytes], top: str = "cifar-10-batches-py") -> Path:
    """A tar.gz as published, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files_.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def accept_tiny(monkeypatch: pytest.MonkeyPatch, *archives: Path) -> None:
    """Takes batches of 20 images, and these archives for the published ones."""
    from hashlib import md5

    monkeypatch.setattr(convert, "ROWS", ROWS)
    for path in archives:
        monkeypatch.setitem(files.ARCHIVES, path.name, md5(path.read_bytes()).hexdigest())


def _string(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def _int(number: int) -> bytes:
    return b"M" + struct.pack("<H", number)
