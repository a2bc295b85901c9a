"""An ECG that a user brings, made into what a model of PTB-XL takes: 12 leads in mV, in PTB-XL's order and rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.signal import resample_poly

from datamodules.errors import InputError, MissingFileError
from datamodules.ptbxl.record import (
    LEADS,
    MILLIVOLTS,
    MISSING,
    UNITS_PER_MILLIVOLT,
    CorruptRecordError,
    check_sums,
    read_raw,
)

FillMissing = Literal["no", "derive", "zero"]
ENDINGS = (".hea", ".csv", ".npy")
MIN_SECONDS = 1.0
_LARGEST = 32.767  # mV; what is larger was not given in mV

Floats = npt.NDArray[np.float64]
# Einthoven 1895 and Goldberger 1942: the limb leads are two measurements seen six times.
_DERIVED = {"III": (-1.0, 1.0), "AVR": (-0.5, -0.5), "AVL": (1.0, -0.5), "AVF": (-0.5, 1.0)}  # of I and II


@dataclass(frozen=True)
class Recording:
    """A recording as a model takes it.

    Attributes:
        name: of the record.
        signal: (L, 12) mV in the order of `LEADS`, 0 where a sample or a lead is missing.
        missing: (L, 12), true there.
        sampling_rate: Hz, of `signal`.
        original_rate: Hz, of the file.
        notes: what was done to it, or is odd about it.
    """

    name: str
    signal: Floats
    missing: npt.NDArray[np.bool_]
    sampling_rate: int
    original_rate: float
    notes: list[str]


def find_recordings(path: Path) -> list[Path]:
    """The recordings that a path stands for: a folder's (.hea, .csv, .npy), or one, a WFDB record with or without .hea.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if one in a folder leads out of it, by a link.
    """
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
        if not found:
            raise MissingFileError(f"asked for the recordings in {path}, got none; it has no .hea, .csv or .npy")
        if outside := [file for file in found if not file.resolve().is_relative_to(path.resolve())]:
            raise InputError(f"{outside[0]} lies outside the folder; name the record itself, or copy it there")
        return found
    candidates = [path] if path.suffix.lower() in ENDINGS else [path.with_suffix(".hea"), Path(f"{path}.hea")]
    for file in candidates:
        if file.is_file():
            return [file]
    raise MissingFileError(
        f"asked for the recording {path}, got no such file; name a WFDB header, a .csv, a .npy, or a folder of them"
    )


def read_recording(
    path: Path,
    sampling_rate: int,
    *,
    given_rate: float | None = None,
    given_leads: Sequence[str] | None = None,
    fill_missing: FillMissing = "no",
) -> Recording:
    """Reads one recording, brings its leads into order and resamples it (polyphase, with a filter against aliasing).

    Args:
        path: a WFDB header (units mV, uV or V; its checksums are compared), a .csv with one column per lead, or a .npy
            of shape (L, leads), both in mV; a .csv may begin with `# sampling_rate: 500` and have its leads as header.
        sampling_rate: Hz, of the model.
        given_rate: Hz, of a .csv or .npy that does not say.
        given_leads: names of the columns of a .csv or .npy, in their order.
        fill_missing: what to do about missing leads and samples: "no" raises; "derive" takes limb leads from I and II;
            "zero" does that too, and fills what is still missing as in training: with the mean.

    Raises:
        ValueError: naming the recording and what is wrong with it.
    """
    try:
        rate, names, values = _read(path, given_rate, given_leads)
        values, filled = _in_order(names, values, fill_missing)
        missing = np.isnan(values)
        _check(values, rate, fill_missing)
    except CorruptRecordError as error:
        raise InputError(f"the recording {path} {error}") from error
    ratio = Fraction(sampling_rate) / Fraction(str(rate)).limit_denominator(1000)
    signal, notes = np.where(missing, 0.0, values), []
    if ratio != 1:
        signal = resample_poly(signal, ratio.numerator, ratio.denominator, axis=0, padtype="line")
        old = np.minimum(np.arange(len(signal)) * len(missing) // len(signal), len(missing) - 1)
        missing = missing[old]
        notes.append(f"resampled from {rate:g} to {sampling_rate} Hz")
    notes += filled
    if flat := [lead for lead, trace in zip(LEADS, values.T, strict=True) if np.ptp(trace) == 0]:
        notes.append(f"flat: {', '.join(flat)}")
    if holed := [lead for lead, gaps in zip(LEADS, missing.T, strict=True) if 0 < gaps.sum() < len(gaps)]:
        notes.append(f"missing samples filled in {', '.join(holed)}")
    return Recording(path.stem, np.ascontiguousarray(signal), missing, sampling_rate, rate, notes)


def _read(path: Path, rate: float | None, leads: Sequence[str] | None) -> tuple[float, list[str], Floats]:
    """Rate in Hz, names of the leads, mV (L, leads) with NaN where a sample is missing."""
    if path.suffix.lower() == ".hea":
        raw = read_raw(path.with_suffix(""), tuple(MILLIVOLTS))
        check_sums(raw)
        values = np.where(raw.microvolts == MISSING, np.nan, raw.microvolts / UNITS_PER_MILLIVOLT)
        return raw.sampling_rate, raw.leads, values
    if path.suffix.lower() == ".csv":
        header_rate, header_leads, values = _read_csv(path)
        rate, leads = (header_rate if rate is None else rate), (header_leads if leads is None else leads)
    else:
        try:
            values = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise CorruptRecordError(f"is not an array of numbers: {error}") from error
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise CorruptRecordError(f"is {values.dtype} of shape {values.shape}, expected numbers of shape (L, leads)")
    if rate is None or not np.isfinite(rate) or rate <= 0:
        raise CorruptRecordError(f"needs a sampling rate in Hz, got {rate}; give it: --sampling_rate 500")
    if leads is None:
        raise CorruptRecordError("does not name its leads; give them in their order: --leads '[I, II, ...]'")
    if len(leads) != values.shape[1]:
        raise CorruptRecordError(f"has {values.shape[1]} columns for {len(leads)} leads; it must be (L, leads)")
    if np.isinf(values).any():
        raise CorruptRecordError("has infinite values")
    with np.errstate(invalid="ignore"):
        largest = np.nanmax(np.abs(values.astype(np.float64)), initial=0)
    if largest > _LARGEST:
        raise CorruptRecordError(f"reaches {largest:g}, which cannot be mV; convert it to mV")
    return float(rate), list(leads), values.astype(np.float64)


def _read_csv(path: Path) -> tuple[float | None, list[str] | None, Floats]:
    rate = None
    try:
        with path.open(encoding="utf-8") as file:
            comments, first = [], file.readline()
            while first.startswith("#"):
                comments.append(first)
                first = file.readline()
        for line in comments:
            key, _, value = line.lstrip("# ").replace("=", ":").partition(":")
            if key.strip().lower() == "sampling_rate":
                rate = float(value)
        named = any(cell.strip().strip('"').upper() in LEADS for cell in first.split(","))
        table = pd.read_csv(path, skiprows=len(comments), header=0 if named else None, skipinitialspace=True)
        values = table.to_numpy(dtype=np.float64)
    except (ValueError, pd.errors.ParserError) as error:
        raise CorruptRecordError(f"is not a table of numbers: {error}") from error
    return rate, [str(name).strip() for name in table.columns] if named else None, values


def _in_order(names: Sequence[str], values: Floats, fill: FillMissing) -> tuple[Floats, list[str]]:
    """(L, 12) in the order of `LEADS`, NaN where nothing is known, and what was filled in."""
    upper = [name.strip().upper() for name in names]
    if twice := sorted({lead for lead in upper if lead in LEADS and upper.count(lead) > 1}):
        raise CorruptRecordError(f"has lead {', '.join(twice)} more than once")
    columns = {lead: values[:, upper.index(lead)] for lead in LEADS if lead in upper}
    absent = [lead for lead in LEADS if lead not in columns]
    derived = [lead for lead in absent if lead in _DERIVED and {"I", "II"} <= columns.keys()] if fill != "no" else []
    for lead in derived:
        of_I, of_II = _DERIVED[lead]
        columns[lead] = of_I * columns["I"] + of_II * columns["II"]
    zero = [lead for lead in absent if lead not in derived]
    if zero and (fill != "zero" or not columns):
        remedy = "or --fill_missing zero" if fill == "derive" else "--fill_missing derive (limb leads) or zero"
        raise CorruptRecordError(
            f"has {len(upper)} leads ({', '.join(names)}), without {', '.join(zero)}; give all twelve, {remedy}"
        )
    columns |= {lead: np.full(len(values), np.nan) for lead in zero}
    notes = [f"derived from I and II: {', '.join(derived)}"] if derived else []
    notes += [f"missing, filled: {', '.join(zero)}"] if zero else []
    return np.stack([columns[lead] for lead in LEADS], axis=1), notes


def _check(values: Floats, rate: float, fill: FillMissing) -> None:
    if len(values) < MIN_SECONDS * rate:
        raise CorruptRecordError(f"has {len(values) / rate:.2f} s, expected at least {MIN_SECONDS:g} s")
    gaps = np.isnan(values).sum(axis=0)
    if gaps.any() and fill != "zero":
        listed = ", ".join(f"{lead} ({count})" for lead, count in zip(LEADS, gaps, strict=True) if count)
        raise CorruptRecordError(f"has missing samples (NaN) in {listed}; cut them out, or --fill_missing zero")
    if not any(np.unique(trace[~np.isnan(trace)]).size > 1 for trace in values.T):
        raise CorruptRecordError("is flat: no lead carries a signal")
