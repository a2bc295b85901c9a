"""Expressions on disk: one folder of plain arrays per data set, memory-mapped on load.

<folder>/{train,val,test}.{tokens,offsets,labels}.npy
<folder>/meta.json      origin of the data, counts, sha256 of the contents
"""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.base import SPLITS
from datamodules.disk import locked, remedies, written_whole
from datamodules.listops.expressions import Expressions
from msssm.errors import InputError, MissingFileError

_DTYPES = {"tokens": "u1", "offsets": "<i8", "labels": "u1"}


class BrokenStoreError(InputError):
    """Folder whose contents differ from what was written."""


def content_digest(splits: Mapping[str, Expressions]) -> str:
    """sha256 of the arrays of all splits: equal data has an equal digest on every platform."""
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
        folder: written by `build`.
        verify: read everything and compare the digest, instead of the sizes only.

    Raises:
        FileNotFoundError: there is no such folder.
        BrokenStoreError: a file is missing or has the wrong size, or the digest differs.
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
    except Exception as error:  # numpy's parser raises almost anything on a damaged header, even tokenize.TokenError
        raise BrokenStoreError(f"{folder} is damaged ({error})") from error
    return splits, meta


def build(folder: Path, make: Callable[[], Mapping[str, Expressions]], about: Mapping[str, Any]) -> None:
    """Ensures that `folder` holds complete data: if not, calls `make` and writes its splits.

    A damaged folder is replaced, with a warning. If several processes build at once, one of them does and the others
    wait for its data.

    Args:
        folder: to fill.
        make: returns the splits `train`, `val`, `test`.
        about: further entries for meta.json.

    Raises:
        OSError: the folder cannot be written or the disk is full; says what to do.
    """
    if _whole(folder):
        return
    with remedies("ListOps", folder.parent), locked(folder.parent):
        if not _whole(folder):  # another process may have built it meanwhile
            splits = make()
            with written_whole(folder) as unfinished:
                _write(unfinished, splits, about)


def _whole(folder: Path) -> bool:
    try:
        load(folder, verify=True)
    except FileNotFoundError:
        return False
    except BrokenStoreError as error:
        rank_zero_warn(f"{error}: building it again")
        return False
    return True


def _write(folder: Path, splits: Mapping[str, Expressions], about: Mapping[str, Any]) -> None:
    for split in SPLITS:
        for name, dtype in _DTYPES.items():
            np.save(folder / f"{split}.{name}.npy", getattr(splits[split], name).astype(dtype, copy=False))
    counts = {split: splits[split].samples for split in SPLITS}
    meta = {**about, "counts": counts, "digest": content_digest(splits)}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
