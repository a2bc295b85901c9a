"""Expressions on disk: one folder of plain arrays per data set, memory-mapped on load.

    <folder>/{train,val,test}.{tokens,offsets,labels}.npy
    <folder>/meta.json      what the data is made of, counts, sha256 of the contents

A folder is written beside its place and renamed into it, so it is whole or absent.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.base import SPLITS
from datamodules.disk import locked, remedies
from datamodules.errors import InputError, MissingFileError
from datamodules.listops.expressions import Expressions

_DTYPES = {"tokens": "u1", "offsets": "<i8", "labels": "u1"}


class BrokenStoreError(InputError):
    """The folder exists but is not what was written."""


def content_digest(splits: Mapping[str, Expressions]) -> str:
    """sha256 of the arrays of all splits: the same data has the same digest wherever it lies."""
    digest = sha256()
    for split in SPLITS:
        for name, dtype in _DTYPES.items():
            array = np.ascontiguousarray(getattr(splits[split], name), dtype=dtype)
            digest.update(f"{split}.{name}:{len(array)};".encode())
            digest.update(array.data)
    return digest.hexdigest()


def load(folder: Path, *, verify: bool = False) -> tuple[dict[str, Expressions], dict[str, Any]]:
    """Memory-maps a folder; returns its splits and its meta.json.

    Args:
        folder: that `build` made.
        verify: read everything and compare the digest, instead of the sizes only.

    Raises:
        FileNotFoundError: if there is no such folder.
        BrokenStoreError: if a file is missing, has the wrong size, or the digest differs.
    """
    if not folder.is_dir():
        raise MissingFileError(f"expected ListOps data in {folder}, got no such folder; call prepare_data() first")
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        splits = {}
        for split in SPLITS:
            arrays = [np.load(folder / f"{split}.{name}.npy", mmap_mode="r", allow_pickle=False) for name in _DTYPES]
            splits[split] = data = Expressions(*arrays)
            counts = (len(data.offsets) - 1, len(data.labels), len(data.tokens))
            if counts != (meta["counts"][split], meta["counts"][split], int(data.offsets[-1])):
                raise InputError(f"wrong size of split {split}")
        if verify and content_digest(splits) != meta["digest"]:
            raise InputError("wrong sha256 of the contents")
    except Exception as error:  # whatever a damaged header makes numpy's parser raise, tokenize.TokenError too
        raise BrokenStoreError(f"{folder} is damaged ({error})") from error
    return splits, meta


def build(folder: Path, make: Callable[[], Mapping[str, Expressions]], about: Mapping[str, Any]) -> None:
    """Makes sure that `folder` holds whole data: calls `make` and writes its splits if need be.

    A damaged folder is replaced, with a warning. Of several processes that build at once one does it, and the others
    wait and take its data.

    Args:
        folder: to fill.
        make: returns the splits `train`, `val`, `test`.
        about: further entries for meta.json.

    Raises:
        OSError: saying what to do, if the folder cannot be written or has no room.
    """
    if _whole(folder):
        return
    with remedies("ListOps", folder.parent), locked(folder.parent):
        if not _whole(folder):  # another process may have made it meanwhile
            _build(folder, make(), about)


def _whole(folder: Path) -> bool:
    try:
        load(folder, verify=True)
    except FileNotFoundError:
        return False
    except BrokenStoreError as error:
        rank_zero_warn(f"{error}: building it again")
        return False
    return True


def _build(folder: Path, splits: Mapping[str, Expressions], about: Mapping[str, Any]) -> None:
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _write(unfinished, splits, about)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(folder: Path, splits: Mapping[str, Expressions], about: Mapping[str, Any]) -> None:
    folder.mkdir()
    for split in SPLITS:
        for name, dtype in _DTYPES.items():
            np.save(folder / f"{split}.{name}.npy", getattr(splits[split], name).astype(dtype, copy=False))
    counts = {split: splits[split].samples for split in SPLITS}
    meta = {**about, "counts": counts, "digest": content_digest(splits)}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    for path in folder.iterdir():  # a rename may reach the disk before the contents do
        with path.open("rb") as file:
            os.fsync(file.fileno())
