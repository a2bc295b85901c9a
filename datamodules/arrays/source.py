"""Sequences with labels, splits and groups: from a folder and its table, or from arrays; what is wrong is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from datamodules.arrays.files import Array, Sequences
from datamodules.base import SPLITS
from datamodules.disk import few, leaves_its_folder
from msssm.errors import InputError, MissingFileError

Target = Literal["class", "labels", "regression", "step"]
Ints = npt.NDArray[np.int64]


class Source(NamedTuple):
    """N sequences with what is known of each.

    Attributes:
        sequences: the N sequences.
        labels: (N,) any values for "class", (N, K) numbers for "labels" and "regression", N sequences for "step".
        columns: Names of the K labels.
        splits: (N,) train, val or test; None for a random split.
        groups: (N,) any values; None for groups of one.
    """

    sequences: Sequences
    labels: Array | Sequences
    columns: list[str]
    splits: Array | None = None
    groups: Array | None = None


def read_folder(
    root: Path, table: str, target: Target, columns: list[str], split_column: str | None, group_column: str | None
) -> Source:
    """Reads the table of a folder; the sequences are not opened yet.

    Raises:
        InputError: the table or a column is missing, a file is missing or outside of the folder, or a value is empty.
    """
    path = root / table
    if not path.is_file():
        raise MissingFileError(
            f"asked for the table {path}, got no such file; write a CSV with a column file and the labels"
        )
    try:
        content = pd.read_csv(path, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"the table {path} cannot be read as CSV ({error}); write it with commas, in UTF-8") from error
    wanted = ["file", *columns, *(name for name in (split_column, group_column) if name is not None)]
    if absent := [name for name in wanted if name not in content.columns]:
        raise InputError(
            f"asked for the columns {few(absent)} of {path}, got {few(content.columns)}; correct data.labels, "
            "data.split_column or data.group_column, or add them"
        )
    for name in wanted:
        if (empty := np.flatnonzero(content[name].astype(str).str.strip() == "")).size:
            raise InputError(
                f"expected a value in every row of the column {name} of {path}, got none in row {empty[0] + 2}; "
                "fill it in or remove the row"
            )
    labels: Array | Sequences = content[columns].to_numpy()
    if target == "class":
        labels = content[columns[0]].to_numpy()
    elif target == "step":
        labels = Sequences(_paths(root, content[columns[0]], path))
    return Source(
        Sequences(_paths(root, content["file"], path)),
        labels,
        columns,
        None if split_column is None else content[split_column].to_numpy(),
        None if group_column is None else content[group_column].to_numpy(),
    )


def _paths(root: Path, column: "pd.Series[Any]", table: Path) -> list[Path]:
    names = column.astype(str).tolist()
    if outside := [name for name in names if leaves_its_folder(name)]:
        raise InputError(f"expected files inside of {root} in {table}, got {few(outside)}; name them relative to it")
    if missing := [name for name in names if not (root / name).is_file()]:
        raise MissingFileError(
            f"asked for the files of {table}, got no {few(missing)} in {root}; correct the table or add the files"
        )
    return [root / name for name in names]


def from_arrays(
    sequences: Sequence[Array] | Array,
    labels: Sequence[Any] | Array,
    target: Target,
    columns: list[str] | None,
    splits: Sequence[str] | Array | None,
    groups: Sequence[Any] | Array | None,
) -> Source:
    """Takes arrays as they are. Raises InputError where their numbers differ."""
    given: Array | Sequences
    if target == "step":
        given = Sequences(list(labels))
    else:
        given = np.asarray(labels)
        given = given[:, None] if given.ndim == 1 and target != "class" else given
        if given.ndim != (1 if target == "class" else 2):
            raise InputError(
                f"asked for labels of the target {target}, got an array of shape {given.shape}; give one row for each "
                "sequence"
            )
    count = given.shape[1] if isinstance(given, np.ndarray) and given.ndim == 2 else 1
    names = columns or (["label"] if count == 1 else [f"label{number}" for number in range(count)])
    source = Source(
        Sequences(list(sequences)),
        given,
        names,
        None if splits is None else np.asarray(splits),
        None if groups is None else np.asarray(groups),
    )
    sizes = {name: len(part) for name, part in source._asdict().items() if part is not None and name != "columns"}
    if len(set(sizes.values())) > 1 or len(names) != count:
        raise InputError(
            f"asked for one label, split and group of each sequence, got {sizes} and {len(names)} names of {count} "
            "labels; give as many of each"
        )
    return source


def encode(source: Source, target: Target, rows: dict[str, Ints], lengths: Ints) -> tuple[Array | Sequences, list[str]]:
    """Checks the labels; returns classes (N,), numbers (N, K) or, for "step", what came, and the names of the outputs.

    Raises:
        InputError: a label is not of its kind, a class is not in the training split, or there are too few.
    """
    labels: Array | Sequences
    names = source.columns
    if isinstance(source.labels, Sequences):
        found, count = _step_classes(source.labels, source.sequences, lengths)
        labels, names = source.labels, [str(number) for number in range(count)]
        _check_classes({name: np.concatenate([found[row] for row in chosen]) for name, chosen in rows.items()}, names)
    elif target == "class":
        labels, names = _classes(source.labels, source.columns[0])
        _check_classes({name: labels[chosen] for name, chosen in rows.items()}, names)
    else:
        labels = _numbers(source.labels, names, zero_or_one=target == "labels")
    if target == "regression" and (short := [name for name, chosen in rows.items() if len(chosen) < 2]):
        raise InputError(
            f"expected two sequences or more in each split of a regression, for R2, got one in {few(short)}; give "
            "more, or other fractions"
        )
    if target != "regression" and len(names) < 2:
        raise InputError(
            f"expected two classes, or columns of labels, or more, got {names[0]} alone; for one column of 0 and 1 "
            "take the target class"
        )
    return labels, names


def _classes(values: Array, column: str) -> tuple[Ints, list[str]]:
    """Numbers (N,) of the classes in the order of their names, and the names."""
    values = values.astype(str) if values.dtype.kind == "O" else values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"expected a class of every sequence in {column}, got NaN; fill it in or remove the sequence")
    names, numbers = np.unique(values, return_inverse=True)
    return numbers.astype(np.int64), [str(name) for name in names]


def _numbers(values: Array, columns: list[str], *, zero_or_one: bool) -> npt.NDArray[np.float32]:
    """Labels (N, K) as float32. Raises InputError for what is no finite number, or neither 0 nor 1."""
    what = "0 or 1" if zero_or_one else "finite numbers"
    converted = np.empty(values.shape, dtype=np.float32)
    for k, column in enumerate(columns):
        number = np.asarray(pd.to_numeric(pd.Series(values[:, k]), errors="coerce"), dtype=np.float64)
        good = np.isin(number, (0, 1)) if zero_or_one else np.isfinite(number)
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            raise InputError(
                f"expected {what} in the labels {column}, got {str(values[row, k])!r} of sequence {row}; correct "
                "it, or choose another data.target"
            )
        converted[:, k] = number
    return converted


def _step_classes(labels: Sequences, sequences: Sequences, lengths: Ints) -> tuple[list[Ints], int]:
    """The classes that occur in each sequence, and how many there are.

    Raises:
        InputError: labels are not integers from 0 on, one for each step.
    """
    found = []
    for index, length in enumerate(lengths):
        y = labels.array(index)
        if y.shape != (length,) or y.dtype.kind not in "iu" or y.min() < 0:
            raise InputError(
                f"expected {length} integers from 0 on, a class of each step of {sequences.name(index)}, got {y.dtype} "
                f"of shape {y.shape} in {labels.name(index)}; correct it"
            )
        found.append(np.unique(y).astype(np.int64))
    return found, int(max(each.max() for each in found)) + 1


def split_rows(source: Source, val_fraction: float, test_fraction: float, seed: int) -> dict[str, Ints]:
    """Rows of each split, by the given column, or at random with the rows of a group together.

    Raises:
        InputError: a split is empty or unknown, or a group is in two of them.
    """
    count = len(source.sequences)
    groups = np.arange(count) if source.groups is None else source.groups
    names, group = np.unique(groups.astype(str), return_inverse=True)
    if source.splits is None:
        order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed]))).permutation(len(names))
        val, test = (max(1, round(fraction * len(names))) for fraction in (val_fraction, test_fraction))
        kind = np.full(len(names), "train")
        kind[order[:test]], kind[order[test : test + val]] = "test", "val"
        splits = kind[group]
    else:
        splits = source.splits.astype(str)
    if unknown := sorted(set(splits.tolist()) - set(SPLITS)):
        raise InputError(f"expected the splits train, val and test, got {few(unknown)}; rename them")
    rows = {name: np.flatnonzero(splits == name) for name in SPLITS}
    if empty := [name for name, chosen in rows.items() if len(chosen) == 0]:
        raise InputError(
            f"asked to split {count} sequences of {len(names)} groups, got none for {few(empty)}; give more, other "
            "fractions, or a column of splits"
        )
    kinds = pd.Series(splits).groupby(group).nunique()
    if kinds.max() > 1:
        name = names[int(np.argmax(kinds))]
        raise InputError(f"expected each group in one split, got {name} in {kinds.max()} of them; move its rows")
    return rows


def _check_classes(found: dict[str, Ints], names: list[str]) -> None:
    """Raises InputError for a class that no training sequence has.

    Args:
        found: Numbers of the classes in each split.
        names: Names of the classes.
    """
    for split in SPLITS[1:]:
        if unknown := sorted(set(found[split].tolist()) - set(found["train"].tolist())):
            raise InputError(
                f"expected every class in the training split, got {few(names[k] for k in unknown)} in {split} alone; "
                "choose another data.data_seed or splits, or leave these sequences out"
            )
