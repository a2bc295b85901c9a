"""The leads of a file of any format, by name, in mV, at one rate."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.signal import resample_poly

from datamodules.ptbxl.clock import one_rate, read_axis
from datamodules.ptbxl.leads import ColumnName, millivolts, read_name
from datamodules.ptbxl.record import LEADS, MISSING, UNITS_PER_MILLIVOLT, check_sums, read_channels
from datamodules.ptbxl.table import Table, read_table
from datamodules.ptbxl.wfdb_record import Channel, CorruptRecordError

_MOST_LEADS = 40  # of the shorter side of an array; the longer one is time
_RATES = ("fs", "sampling_rate", "sample_rate", "sampling_frequency", "rate", "frequency", "freq", "sfreq", "srate")
_RATE_SOURCE = "the number of that name in it"
_NAME_THEM = "give them in their order, any other name skips a column: --leads '[I, II, ...]'"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """Contents of a file.

    Attributes:
        rate: Hz.
        leads: (L,) mV of each of `LEADS` in the file, NaN for missing samples.
        names: of its columns or signals with samples, as written.
        notes: what was interpreted or left out.
    """

    rate: float
    leads: dict[str, Floats]
    names: list[str]
    notes: list[str]


def read_samples(path: Path, given_rate: float | None, given_leads: Sequence[str] | None) -> Samples:
    """Reads a WFDB record, a table or an array.

    Args:
        path: whose suffix tells the format.
        given_rate: Hz, for a file that does not state it.
        given_leads: names of the columns, for a file that does not name them.

    Raises:
        CorruptRecordError: with the reason.
    """
    ending = path.suffix.lower()
    if ending == ".hea":
        return _of_channels(read_channels(path.with_suffix("")), given_rate, given_leads)
    table = read_array(path) if ending in (".npy", ".npz") else read_table(path)
    return _of_table(table, given_rate, given_leads)


def read_array(path: Path) -> Table:
    """Reads a .npy of (L, leads) or (leads, L); a .npz of one such array, or of (L,) arrays named after leads.

    A .npz may also contain its rate (`fs`, `sampling_rate`, ...), `leads` and `units`.

    Raises:
        CorruptRecordError: it is no such array.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, MemoryError) as error:
        raise CorruptRecordError(f"is not an array of numbers: {error}") from error
    words = {name.lower(): _texts(array) for name, array in arrays.items() if array.dtype.kind in "US"}
    scalars = {name.lower(): array for name, array in arrays.items() if array.size == 1 and array.dtype.kind in "fiu"}
    rate = next((float(scalars[name].item()) for name in _RATES if name in scalars), None)
    units = next((words[name] for name in ("unit", "units") if name in words), [])
    unit = units[0] if len(set(units)) == 1 else None
    columns = {name: array for name, array in arrays.items() if array.size > 1 and array.dtype.kind not in "US"}
    if (
        len(columns) > 1
        and {array.ndim for array in columns.values()} == {1}
        and len(set(map(len, columns.values()))) == 1
    ):
        frame = pd.DataFrame(columns).set_axis(range(len(columns)), axis=1)
        return Table(frame, list(columns), rate, _RATE_SOURCE, unit, [])
    tables = {name: array for name, array in columns.items() if array.ndim > 1} or columns or arrays
    if len(tables) != 1:
        raise CorruptRecordError(
            f"has {len(tables)} arrays ({', '.join(tables)}), expected one of shape (L, leads), or one per lead under "
            "its name"
        )
    [array] = tables.values()
    flat = array.squeeze() if array.ndim > 2 else array
    if flat.ndim != 2 or flat.dtype.kind not in "fiu":
        raise CorruptRecordError(f"is {array.dtype} of shape {array.shape}, expected numbers of shape (L, leads)")
    turned = len(flat) <= _MOST_LEADS < flat.shape[1]
    frame = pd.DataFrame(flat.T if turned else flat)
    lists = (words[name] for name in ("leads", "lead_names", "sig_name", "names", "channels") if name in words)
    names = next((found for found in lists if len(found) == frame.shape[1]), None)
    if unit is None and units:  # one per column
        if names is None or len(units) != len(names):
            raise CorruptRecordError(f"names the units {', '.join(units)}, and no lead for each; give all in one unit")
        names = [f"{name} ({each})" for name, each in zip(names, units, strict=True)]
    return Table(frame, names, rate, _RATE_SOURCE, unit, ["read with a lead per row"] if turned else [])


def _texts(array: npt.NDArray[Any]) -> list[str]:
    """Texts of an array of strings or, as in HDF5 and MATLAB, of bytes."""
    return [text.decode("latin-1") if isinstance(text, bytes) else str(text) for text in array.ravel()]


def _of_table(table: Table, given_rate: float | None, given_leads: Sequence[str] | None) -> Samples:
    frame, count, notes = table.frame, table.frame.shape[1], list(table.notes)
    whole = given_leads is not None and len(given_leads) == count
    titles = list(given_leads) if given_leads is not None and whole else table.names or [""] * count
    rate, source = table.rate, table.source
    kept = []
    for i, title in enumerate(titles):
        axis = None if read_name(title).lead else read_axis(title, frame[i])
        if axis is None:
            kept.append(i)
            continue
        notes.append(f"column {title.strip() or i + 1!r} not taken for a lead: {axis.meaning}")
        if axis.rate is not None:
            own = f"its column of {axis.meaning}"
            if rate is not None:
                one_rate(rate, axis.rate, f"{own} (and {rate:g} by {source})")
            rate, source = axis.rate, own
    if given_rate is None and rate is None:
        raise CorruptRecordError(
            "; ".join(["needs a sampling rate in Hz, got None; give it: --sampling_rate 500", *notes])
        )
    rate = one_rate(given_rate, rate, source)
    written = [table.names[i] for i in kept] if table.names is not None else None
    names = _names(written, given_leads if not whole else [titles[i] for i in kept], len(kept))
    leads: dict[str, Floats] = {}
    for i, (name, title) in zip(kept, names, strict=True):
        if name.lead is None:
            notes.append(f"not used: {title}")
            continue
        if not pd.api.types.is_numeric_dtype(frame[i]) or frame[i].dtype.kind not in "fiu":
            wrong = frame[i][pd.to_numeric(frame[i], errors="coerce").isna() & frame[i].notna()]
            raise CorruptRecordError(f"has {wrong.iloc[0]!r} in the column of {title}, expected numbers")
        if read_axis(None, frame[i]) is not None:
            raise CorruptRecordError(
                f"rises in equal steps in its column {i + 1}, which is to be {name.lead}: row numbers or times are no "
                f"lead; name the leads, and {_NAME_THEM}"
            )
        unit = name.unit or table.unit
        factor = 1.0 if unit is None else millivolts(unit)
        if factor is None:
            raise CorruptRecordError(f"has {name.lead} in {unit}, expected mV, uV or V; divide by its units per mV")
        _add(leads, name, factor * name.sign * frame[i].to_numpy(np.float64), title, notes)
    return Samples(rate, leads, [title for _, title in names], notes)


def _of_channels(channels: Sequence[Channel], given_rate: float | None, given_leads: Sequence[str] | None) -> Samples:
    names = _names([channel.name for channel in channels], given_leads, len(channels))
    pairs = [(name, title, channel) for (name, title), channel in zip(names, channels, strict=True)]
    wanted = [pair for pair in pairs if pair[0].lead]
    notes = [f"not used: {', '.join(title or 'one without a name' for name, title, _ in pairs if not name.lead)}"]
    notes = notes if len(wanted) < len(pairs) else []
    check_sums([channel for *_, channel in wanted])
    if other := {channel.unit for *_, channel in wanted if millivolts(channel.unit) is None}:
        raise CorruptRecordError(f"is in {', '.join(sorted(other))}, expected mV or uV or V")
    fastest = max(channel.rate for *_, channel in wanted)
    rate = one_rate(given_rate, fastest, "its header")
    leads: dict[str, Floats] = {}
    for name, title, channel in wanted:
        samples: Floats
        if channel.samples.dtype == np.int16:
            samples = np.where(channel.samples == MISSING, np.nan, channel.samples / UNITS_PER_MILLIVOLT)
        else:
            samples = (millivolts(channel.unit) or 1.0) * channel.samples.astype(np.float64)
        if channel.rate != fastest:
            samples = _brought_to(samples, Fraction(fastest / channel.rate).limit_denominator(1000))
            notes.append(f"{title} resampled from {channel.rate:g} to {fastest:g} Hz")
        _add(leads, name, name.sign * samples, title, notes)
    length = min(map(len, leads.values()))
    return Samples(rate, {lead: trace[:length] for lead, trace in leads.items()}, [title for _, title in names], notes)


def _brought_to(samples: Floats, ratio: Fraction) -> Floats:
    gaps = np.isnan(samples)
    faster = resample_poly(np.where(gaps, 0.0, samples), ratio.numerator, ratio.denominator, padtype="line")
    return np.where(gaps[np.minimum(np.arange(len(faster)) * len(gaps) // len(faster), len(gaps) - 1)], np.nan, faster)


def _names(written: Sequence[str] | None, given: Sequence[str] | None, count: int) -> list[tuple[ColumnName, str]]:
    """Lead of each column of samples, by its own or its given name, and that name."""
    own = [read_name(name) for name in written or []]
    if given is None:
        if written is None:
            raise CorruptRecordError(f"does not name its leads in {count} columns; {_NAME_THEM}")
        if not any(name.lead for name in own):
            listed = ", ".join(repr(name) for name in written[:15])
            raise CorruptRecordError(
                f"has no lead among the names of its {count} columns ({listed}), expected {', '.join(LEADS)}; "
                f"{_NAME_THEM}"
            )
        return list(zip(own, written, strict=True))
    if len(given) != count:
        raise CorruptRecordError(
            f"has {count} columns for {len(given)} leads; it must be (L, leads), besides times and row numbers"
        )
    named = [read_name(name) for name in given]
    for mine, theirs in zip(own, named, strict=False):
        if mine.lead and theirs.lead and mine.lead != theirs.lead:
            raise CorruptRecordError(
                f"names its columns {', '.join(written or [])}, and --leads has {theirs.lead} for {mine.lead}; leave "
                "the option out, or mend the file"
            )
    if not any(name.lead for name in named):
        raise CorruptRecordError(f"is given {', '.join(given)} by --leads, expected {', '.join(LEADS)}")
    units = [name.unit for name in own] or [None] * count
    named = [name._replace(unit=name.unit or unit) for name, unit in zip(named, units, strict=True)]
    return list(zip(named, given, strict=True))


def _add(leads: dict[str, Floats], name: ColumnName, samples: Floats, title: str, notes: list[str]) -> None:
    lead = name.lead or ""
    if lead in leads:
        raise CorruptRecordError(f"has lead {lead} more than once")
    if np.isinf(samples).any():
        raise CorruptRecordError(f"has infinite values in {lead}")
    if name.sign < 0:
        notes.append(f"{title} turned over to {lead}")
    if name.modified:
        notes.append(f"{title} taken as {lead}")
    leads[lead] = samples
