"""Long Range Arena's official ListOps files, checked row by row.

The release (Tay et al. 2021) has `basic_train.tsv`, `basic_val.tsv` and `basic_test.tsv` with the columns Source and
Target; Source is written in nested pairs, `( ( ( [MAX 2 ) 9 ) ] )`.
"""

from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from datamodules.base import SPLITS
from datamodules.listops.expressions import Expressions, encode, evaluate, join, tokenize
from msssm.errors import InputError, MissingFileError

_HEADER = "Source\tTarget"


def paths(folder: str | Path) -> dict[str, Path]:
    """Locates the file of each split.

    Raises:
        FileNotFoundError: naming the missing files.
    """
    found = {split: Path(folder) / f"basic_{split}.tsv" for split in SPLITS}
    missing = [path.name for path in found.values() if not path.is_file()]
    if missing:
        raise MissingFileError(
            f"expected Long Range Arena's ListOps files in {folder}, got no {', '.join(missing)}; "
            "copy them there from lra_release/listops-1000, or leave tsv_dir unset to generate data"
        )
    return found


def source_digest(folder: str | Path) -> str:
    """sha256 over the digests of the three files."""
    digest = sha256()
    for path in paths(folder).values():
        with path.open("rb") as file:
            digest.update(file_digest(file, "sha256").digest())
    return digest.hexdigest()


def read_all(folder: str | Path) -> dict[str, Expressions]:
    """Reads all splits.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a row is wrong; names the first by file and line, with the remedy.
    """
    return {split: read_split(path) for split, path in paths(folder).items()}


def read_split(path: Path) -> Expressions:
    """Reads one file. Raises as `read_all`."""
    rows: list[npt.NDArray[np.uint8]] = []
    labels: list[int] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        header = file.readline().rstrip("\n")
        if header != _HEADER:
            raise _error(path, 1, f"expected the header {_HEADER!r}, got {header[:40]!r}")
        for number, line in enumerate(tqdm(file, desc=path.name, unit=" rows", delay=3), start=2):
            try:
                ids, label = _read_row(line.rstrip("\n"))
            except InputError as error:
                raise _error(path, number, str(error)) from error
            rows.append(ids)
            labels.append(label)
    if not rows:
        raise _error(path, 2, "expected a row, got the end of the file")
    return join(rows, labels)


def _read_row(line: str) -> tuple[npt.NDArray[np.uint8], int]:
    columns = line.split("\t")
    if len(columns) != 2:
        raise InputError(f"expected an expression, a tab and its value, got {len(columns)} column(s)")
    source, target = columns
    tokens = tokenize(source)
    value = evaluate(tokens)
    if target != str(value):
        raise InputError(f"expected the value {value} that the expression has, got {target[:40]!r}")
    return encode(tokens), value


def _error(path: Path, line: int, reason: str) -> InputError:
    return InputError(f"{path}, line {line}: {reason}; copy the file from the release again or correct the line")
