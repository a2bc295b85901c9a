"""timm's readers of folders, tars and Hugging Face's parquet, with the checks that they lack; files to RGB.

A folder or a tar contains one folder of images per class: <source>/train/<class>/*.JPEG, or <source>/train.tar. Files
and folders that are hidden or left by a system (.ipynb_checkpoints, __MACOSX, ._x.jpg) are no images or classes.
"""

import io
import os
import random
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from datamodules.disk import few, left_by_a_system
from msssm.errors import InputError, MissingFileError

MEAN_COLOUR = (124, 116, 104)  # of ImageNet
_FORM = (
    "it has one folder of images per class, <split>/<class>/<image>.JPEG, as torchvision.datasets.ImageNet(folder, "
    "split) unpacks the official archives ILSVRC2012_*.tar"
)


class Split(NamedTuple):
    """timm's reader of a split with access by index, its rows that are images, and the classes that they have.

    `classes` are in the order of their numbers, and empty if the reader knows no names.
    """

    reader: Any
    rows: npt.NDArray[np.int64]
    classes: list[str]


def open_split(dataset: str, source: Path, split: str) -> Split:
    """Opens a split in `source`; `dataset` is "" for a folder or tar, or timm's name, such as "hfds/imagenet-1k"."""
    from timm.data.readers.reader_factory import create_reader

    if dataset:
        reader = create_reader(dataset, root=str(source), split=split)
        return Split(reader, np.arange(len(reader)), class_names(reader))
    path = _find(source, split)
    options: dict[str, Any] = {}
    if path.is_file():
        _check_end(path)
        options["cache_tarinfo"] = False  # timm would write it beside the tar
    try:
        reader = create_reader("", root=str(path), **options)
    except (RuntimeError, ValueError, tarfile.TarError) as error:
        raise InputError(f"got no images in {path}; {_FORM}") from error
    tar, start = hasattr(reader, "tar_state"), len(str(path)) + 1
    names = [item[0].path.removeprefix("./") if tar else item[0][start:] for item in reader.samples]
    left = [left_by_a_system(name) for name in names]
    rows = np.flatnonzero([part is None for part in left])
    if len(rows) < len(left):
        found = few(sorted({part for part in left if part is not None}))
        rank_zero_warn(f"{path}: left out {found}, which are hidden or left by a system")
    if len(rows) == 0:
        raise InputError(f"got no images in {path}; {_FORM}")
    numbers = reader.targets if tar else np.array([number for _, number in reader.samples])
    known = class_names(reader)
    classes = [known[number] for number in np.unique(numbers[rows])]
    if "" in classes:
        raise InputError(f"{path} has images outside of any folder; {_FORM}")
    return Split(reader, rows, classes)


def class_names(reader: Any) -> list[str]:
    """Names of all classes of a reader in the order of their numbers; empty if it has none."""
    numbers = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    return sorted(numbers, key=numbers.__getitem__)


def listing_digest(split: Split) -> str:
    """sha256 of classes, file names and sizes, or of the fingerprint of a data set without files."""
    reader = split.reader
    if hasattr(reader, "dataset"):  # Hugging Face: a fingerprint of its files and of what was done to them
        lines = [reader.dataset._fingerprint]
    elif hasattr(reader, "tar_state"):
        lines = [f"{member.name} {member.size}" for member, *_ in reader.samples[split.rows]]
    else:
        paths = [reader.samples[row][0] for row in split.rows]
        lines = [f"{os.path.relpath(path, reader.root)} {os.path.getsize(path)}" for path in paths]
    return sha256(("\n".join(split.classes) + "".join(f"{line}\n" for line in lines)).encode()).hexdigest()


def _check_end(path: Path) -> None:
    """Checks for the 1,024 zero bytes at a tar's end: tarfile reads a truncated tar as one with fewer images."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 1024))
        if size % 512 or file.read() != bytes(1024):
            raise InputError(f"{path} is not a whole tar (it ends early, after {size} bytes); copy it again")


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any picture to 8-bit RGB; alpha is dropped.

    Grey values of 16 bits are scaled, 65535 to 255; `Image.convert` would clip them at 255. Floats, and integers beyond
    16 bits, are refused: their white is unknown.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise InputError(f"grey values from {values.min()} to {values.max()} are not integers of 16 bits")
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    return image.convert("RGB")


def decode(content: bytes) -> tuple[Image.Image, str | None]:
    """Decodes a file; returns the picture and None, or ImageNet's mean colour and the damage."""
    try:
        return to_rgb(Image.open(io.BytesIO(content))), None
    except Exception as error:  # Pillow's parsers raise almost anything on a damaged file
        return Image.new("RGB", (32, 32), MEAN_COLOUR), str(error) or type(error).__name__


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds Python's, NumPy's and torch's global generators and the device's, and restores them afterwards.

    timm's augmentation draws from all of them. If Lightning runs it in the main process, the model's dropout must not
    depend on it.
    """
    python, numpy = random.getstate(), np.random.get_state()
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too
        for chosen in cuda:
            with torch.cuda.device(chosen):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _find(source: Path, split: str) -> Path:
    # If timm does not find a split, it reads the whole source, training images included.
    names = (split, "validation") if split == "val" else (split,)
    for path in (source / f"{name}{ending}" for name in names for ending in ("", ".tar")):
        if path.exists():
            return path
    expected = f"expected the {split} images in {source / split} or {source / split}.tar"
    raise MissingFileError(f"{expected}, got neither; name the folder of both splits as source; {_FORM}")
