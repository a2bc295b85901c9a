"""CIFAR-10's batch files in both published versions, read without running any code in them.

python version   data_batch_1..5, test_batch: a pickle by Python 2 of {b"data": (n, 3072) uint8, b"labels": list, ...}
binary version   data_batch_1..5.bin, test_batch.bin: n rows of 1 byte label and 3072 bytes of pixels

A row of pixels is a (3, 32, 32) image, planes R, G, B.
"""

import contextlib
import io
import pickle
import pickletools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from msssm.errors import InputError

SIDE, CLASSES = 32, 10
_ROW = 3 * SIDE * SIDE
_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)


class Batch(NamedTuple):
    """Images (n, 3072) uint8 and classes (n,) uint8 of one file."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


class _Record:
    """Replacement for the globals in a pickle that name numpy: stores its arguments and calls nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Record):
    """numpy.core.multiarray._reconstruct(...), then the state (version, shape, dtype, Fortran order, bytes)."""

    def array(self) -> npt.NDArray[np.uint8]:
        _, shape, dtype, fortran, content = self.state
        if not isinstance(dtype, _DType) or dtype.arguments[0] not in (b"u1", "u1") or fortran:
            raise InputError("its data are not bytes in C order")
        return np.frombuffer(content, dtype=np.uint8).reshape(shape)


class _DType(_Record):
    """numpy.dtype("u1", 0, 1)."""


def _highest_memo(content: bytes) -> int:
    """Highest memo index of a pickle: the unpickler allocates memory for all indices up to it."""
    highest = 0
    with contextlib.suppress(ValueError):  # malformed: the unpickler's message is better
        for opcode, number, _ in pickletools.genops(content):
            if opcode.name in ("PUT", "LONG_BINPUT"):
                highest = max(highest, int(str(number)))
    return highest


class _Unpickler(pickle.Unpickler):
    """Unpickler that maps the three globals of CIFAR-10's pickles to records, and refuses every other."""

    _ALLOWED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Record,
        ("numpy", "dtype"): _DType,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which CIFAR-10 does not need") from None


def read_batch(name: str, content: bytes) -> Batch:
    """Reads images and labels of one file, whose version its suffix tells.

    Raises:
        ValueError: it is not a CIFAR-10 batch.
    """
    try:
        batch = _read_binary(content) if name.endswith(".bin") else _read_pickle(content)
        if batch.images.shape != (len(batch.labels), _ROW) or len(batch.labels) == 0:
            raise InputError(f"{len(batch.labels)} labels for images of shape {batch.images.shape}")
        if batch.labels.max() >= CLASSES:
            raise InputError(f"class {batch.labels.max()} of {CLASSES}")
    except _PICKLE_ERRORS as error:
        raise InputError(
            f"{name} is not a batch of CIFAR-10 ({error}); take the files of the published archive"
        ) from error
    return batch


def _read_pickle(content: bytes) -> Batch:
    if _highest_memo(content) > len(content):
        raise InputError("it keeps a value under a number beyond its size")
    fields = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    labels = np.array(fields[b"labels"], dtype=np.int64)
    if labels.ndim != 1 or labels.min(initial=0) < 0 or labels.max(initial=0) > 255:
        raise InputError("its labels are not a list of classes")
    return Batch(fields[b"data"].array(), labels.astype(np.uint8))


def _read_binary(content: bytes) -> Batch:
    rows = np.frombuffer(content, dtype=np.uint8)
    if len(rows) % (1 + _ROW):
        raise InputError(f"{len(rows)} bytes are not rows of {1 + _ROW}")
    rows = rows.reshape(-1, 1 + _ROW)
    return Batch(rows[:, 1:], rows[:, 0])
