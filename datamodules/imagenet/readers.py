"""timm's readers, with the checks that they lack.

A folder or a tar contains one folder of images per class: <source>/train/<class>/*.JPEG, or <source>/train.tar. Files
and folders that are hidden or left by a system (.ipynb_checkpoints, __MACOSX, ._x.jpg) are no images or classes.
"""

import os
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.folders import few, left_by_a_system
from msssm.errors import InputError, MissingFileError

_SYNONYMS = {"val": ("val", "validation"), "train": ("train",)}
_OFFICIAL = "ILSVRC2012_*.tar*"  # how image-net.org names its archives
_UNPACK = (
    "Unpack ImageNet's archives: put ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz "
    "(which has the classes of the validation images) in one folder, let torchvision make train/ and val/ there with a "
    "folder per class, torchvision.datasets.ImageNet(folder, split) for both splits, and name the folder as source"
)


def is_stream(dataset: str) -> bool:
    """Whether timm reads the data set in sequence, without access by index."""
    return dataset.startswith("wds/")


def open_map(dataset: str, source: Path, split: str) -> Any:
    """Opens a reader with access by index: `len(reader)`, `reader[i] -> (file, class)`, `reader.filename(i)`.

    Args:
        dataset: "" for a folder or tar, or timm's name, such as "hfds/imagenet-1k".
        source: folder of the splits; for "hfds/..." the cache.
        split: its name.

    Raises:
        FileNotFoundError: the split does not exist.
        ValueError: it has no images.
    """
    from timm.data.readers.reader_factory import create_reader

    if dataset:
        return create_reader(dataset, root=str(source), split=split)
    path = _find(source, split)
    options: dict[str, Any] = {}
    if path.is_file():
        _check_end(path)
        options["cache_tarinfo"] = False  # timm would write it beside the tar
    try:
        reader = create_reader("", root=str(path), **options)
    except (RuntimeError, ValueError, tarfile.TarError) as error:
        raise InputError(_no_images(path)) from error
    _leave_out(reader, path)
    if "" in class_names(reader):
        raise InputError(
            f"{path} has images outside of any folder; expected one folder per class. The official validation images "
            f"come so. {_UNPACK}"
        )
    if path.is_dir() and (empty := _empty_classes(reader, path)):
        raise InputError(
            f"{len(empty):,} class folders of {path} hold no images (.jpg, .jpeg, .png): {few(empty)}; put some there, "
            "or remove the folders"
        )
    return reader


def open_stream(dataset: str, source: Path, split: str, *, batch_size: int, training: bool, seed: int) -> Any:
    """Opens timm's reader of WebDataset shards, which yields (image, class).

    Args:
        dataset: "wds/...".
        source: folder of the shards and their _info.json.
        split: its name in _info.json, or shards and their samples: "train-{0000..1023}.tar|1281167".
        batch_size: Batch size of each process.
        training: shuffle shards and samples, whole batches in each worker.
        seed: Seed of the order of the shards, together with the epoch.

    Raises:
        ValueError: the shards cannot be opened, or webdataset is not installed.
    """
    from timm.data.readers.reader_factory import create_reader

    try:
        reader = create_reader(
            dataset,
            root=str(source),
            split=split,
            is_training=training,
            batch_size=batch_size,
            seed=seed,
            input_img_mode="",  # as stored: timm's conversion clips 16 bits
        )
    except (RuntimeError, KeyError) as error:
        raise InputError(f"cannot read {split!r} of {dataset} in {source}: {error}") from error
    for shard in _shards(reader):
        if not shard.is_file():
            raise MissingFileError(f"expected the shard {shard}, got no such file; name the folder of all as source")
        _check_end(shard)
    return reader


def class_names(reader: Any) -> list[str]:
    """Names of the classes in the order of their numbers; empty if the reader has none."""
    numbers = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    return sorted(numbers, key=numbers.__getitem__)


def listing_digest(reader: Any) -> str:
    """sha256 of classes, file names and sizes, or of the fingerprint of a data set without files."""
    digest = sha256("\n".join(class_names(reader)).encode())
    for line in _listing(reader):
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _listing(reader: Any) -> list[str]:
    if shards := _shards(reader):
        return [f"{shard.name} {shard.stat().st_size}" for shard in shards]
    if hasattr(reader, "dataset"):  # Hugging Face: a fingerprint of its files and of what was done to them
        return [reader.dataset._fingerprint]
    samples = reader.samples
    if hasattr(reader, "tar_state"):
        return [f"{member.name} {member.size}" for member, *_ in samples]
    return [f"{os.path.relpath(path, reader.root)} {os.path.getsize(path)}" for path, _ in samples]


def _shards(reader: Any) -> list[Path]:
    """Shards of a WebDataset; none for other readers."""
    names = getattr(getattr(reader, "split_info", None), "filenames", None) or ()
    return [Path(reader.root) / name for name in names]


def _check_end(path: Path) -> None:
    """Checks for the 1,024 zero bytes at a tar's end: tarfile reads a truncated tar as one with fewer images."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 1024))
        if size % 512 or file.read() != bytes(1024):
            raise InputError(f"{path} is not a whole tar (it ends early, after {size} bytes); copy it again")


def _leave_out(reader: Any, path: Path) -> None:
    """Removes images that are hidden or left by a system from timm's reader, and numbers the remaining classes."""
    tar = hasattr(reader, "tar_state")
    if tar:
        names = [member.path for member, *_ in reader.samples]
        classes = reader.targets
    else:
        start = len(str(path)) + 1
        names = [name[start:] for name, _ in reader.samples]
        classes = np.array([number for _, number in reader.samples])
    parts = [left_by_a_system(name.removeprefix("./")) for name in names]
    left = sorted({part for part in parts if part is not None})
    if not left:
        return
    rank_zero_warn(f"{path}: left out {few(left)}, which are hidden or left by a system")
    kept = np.flatnonzero([part is None for part in parts])
    if len(kept) == 0:
        raise InputError(_no_images(path))
    found, new = np.unique(classes[kept], return_inverse=True)
    old = class_names(reader)
    numbers = {old[number]: index for index, number in enumerate(found)}
    if tar:
        reader.samples, reader.targets, reader.class_name_to_idx = reader.samples[kept], new, numbers
    else:
        reader.samples = [(reader.samples[row][0], int(number)) for row, number in zip(kept, new, strict=True)]
        reader.class_to_idx = numbers


def _empty_classes(reader: Any, path: Path) -> list[str]:
    start = len(str(path)) + 1
    filled = {name[start:].split(os.sep, 1)[0] for name, _ in reader.samples}
    folders = (entry.name for entry in os.scandir(path) if entry.is_dir() and not left_by_a_system(entry.name))
    return sorted(set(folders) - filled)


def _no_images(path: Path) -> str:
    told = f"got no images in {path}; expected one folder per class: {path.name}/<class>/<image>.JPEG"
    if path.is_dir() and (tars := sorted(entry.name for entry in path.glob("*.tar"))):
        told += f". It holds {len(tars):,} tars, {tars[0]} for one: unpack each into a folder of its name"
    return told


def _find(source: Path, split: str) -> Path:
    # If timm does not find a split, it reads the whole source, training images included.
    for name in _SYNONYMS.get(split, (split,)):
        for path in (source / name, source / f"{name}.tar"):
            if path.exists():
                return path
    expected = f"expected the {split} images in {source / split} or {source / split}.tar, got"
    if source.match(_OFFICIAL) or any(source.glob(_OFFICIAL)):
        raise MissingFileError(f"{expected} the archives as image-net.org has them. {_UNPACK}")
    if packed := [path.name for path in sorted(source.glob(f"{split}.*")) if path.is_file()]:
        raise MissingFileError(f"{expected} {few(packed)}; unpack it, only a plain tar is read as it is")
    raise MissingFileError(f"{expected} neither; name the folder of both splits as source")
