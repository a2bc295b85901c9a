"""Arrays of numpy: a .npy, or a .npz with its rate, leads and unit."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.ptbxl.errors import CorruptRecordError
from datamodules.ptbxl.readers.contents import Channel, Contents, names_of

_RATES, _LEADS, _UNITS = ("fs", "sampling_rate"), "leads", "unit"


def read_array(path: Path, given_leads: Sequence[str] | None) -> Contents:
    """Reads numbers of shape (L, leads) or (leads, L).

    A .npz has one such array, and may have `fs` or `sampling_rate`, `leads` and `unit` (one, or one per lead).

    Raises:
        CorruptRecordError: it is no such array, or its leads have no names.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays: dict[str, npt.NDArray[Any]] = dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {"": loaded}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, MemoryError) as error:
        raise CorruptRecordError(f"is not an array of numbers: {error}") from error
    signals = [array for array in arrays.values() if array.ndim > 1] or list(arrays.values())
    if len(signals) != 1 or signals[0].ndim != 2 or signals[0].dtype.kind not in "fiu":
        shapes = ", ".join(f"{array.dtype} of shape {array.shape}" for array in signals)
        raise CorruptRecordError(f"has {shapes}, expected one array of numbers of shape (L, leads)")
    [signal] = signals
    own = [str(name) for name in arrays[_LEADS].ravel()] if _LEADS in arrays else None
    names = given_leads if given_leads is not None else own
    if names is None:
        raise CorruptRecordError("does not name its leads; name them in their order: --leads I,II,..")
    columns = signal if len(signal) == len(names) != signal.shape[1] else signal.T
    names = names_of([""] * len(columns), names)
    units = [str(unit) for unit in arrays[_UNITS].ravel()] if _UNITS in arrays else [None]
    units = units * len(names) if len(units) == 1 else units
    if len(units) != len(names):
        raise CorruptRecordError(f"has {len(units)} units for {len(names)} leads; give one, or one per lead")
    rates = [
        arrays[key] for key in _RATES if key in arrays and arrays[key].size == 1 and arrays[key].dtype.kind in "fiu"
    ]
    rate = float(rates[0].item()) if rates else None
    channels = zip(names, columns, units, strict=True)
    return Contents([Channel(n, c.astype(np.float64), rate, u) for n, c, u in channels], False, None, None, [])
