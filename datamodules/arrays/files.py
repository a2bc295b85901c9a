"""Sequences in `.npy` files or in memory, read one at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.disk import left_by_a_system
from msssm.errors import InputError, MissingFileError

Array = npt.NDArray[Any]


def open_array(path: Path) -> Array:
    """Memory-maps a `.npy` file; pickled objects are never loaded.

    Raises:
        InputError: the file is missing, damaged, or holds something else than one array.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise MissingFileError(f"asked for the array {path}, got no such file; correct its name or add it") from error
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            f"asked for the array {path}, got a file that is none ({error}); write it with numpy.save, as numbers"
        ) from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"asked for the array {path}, got an archive of several; write one .npy per sequence")
    return array


class Sequences:
    """Arrays by their number, each read when it is asked for.

    Args:
        items: Paths of `.npy` files, or arrays.
    """

    def __init__(self, items: Sequence[Path | Array]) -> None:
        """Reads nothing."""
        self.items = items

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.items)

    def name(self, index: int) -> str:
        """Path of a sequence, or its number in memory."""
        item = self.items[index]
        return str(item) if isinstance(item, Path) else f"sequence {index}"

    def array(self, index: int) -> Array:
        """A sequence as it is stored."""
        item = self.items[index]
        return open_array(item) if isinstance(item, Path) else np.asarray(item)

    def __getitem__(self, index: int) -> Array:
        """A sequence (L, C)."""
        x = self.array(index)
        return x[:, None] if x.ndim == 1 else x

    def stored(self) -> Iterator[Array]:
        """All of them as they are stored."""
        return (self.array(index) for index in range(len(self)))

    def checked(self) -> Iterator[npt.NDArray[np.float32]]:
        """Reads every sequence as (L, C) float32, one after another.

        Raises:
            InputError: a sequence has another shape or number of channels, holds no numbers, or one that is not finite.
        """
        channels = 0
        for index in range(len(self)):
            x = self[index]
            name = self.name(index)
            if x.ndim != 2 or x.dtype.kind not in "fiu" or 0 in x.shape:
                raise InputError(
                    f"expected numbers of shape (length, channels) or (length,), at least one of them, in {name}, "
                    f"got {x.dtype} of shape {x.shape}; correct or remove it"
                )
            channels = channels or x.shape[1]
            if x.shape[1] != channels:
                raise InputError(
                    f"expected {channels} channels, as in {self.name(0)}, got {x.shape[1]} in {name}; give every "
                    "sequence the same channels, time first"
                )
            with np.errstate(over="ignore"):
                signal = np.asarray(x, dtype=np.float32)
            if not (finite := np.isfinite(signal)).all():
                step, channel = np.argwhere(~finite)[0]
                raise InputError(
                    f"expected finite numbers in {name}, got {signal[step, channel]} at step {step} of channel "
                    f"{channel}; fill the gaps or remove the sequence"
                )
            yield signal


def predict_files(file: str | Path | None) -> Sequences:
    """Sequences to predict: a `.npy` file, or those of a folder in the order of their names.

    Raises:
        InputError: no file is given, or there is none.
    """
    if file is None:
        raise InputError("asked to predict, got predict_file=None; name a .npy file or a folder of them")
    path = Path(file)
    paths = [path] if not path.is_dir() else [p for p in sorted(path.glob("*.npy")) if not left_by_a_system(p.name)]
    if not paths:
        raise MissingFileError(f"asked to predict the .npy files in {path}, got none; check predict_file")
    return Sequences(paths)
