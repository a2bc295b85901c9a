"""A user's ECG in the form that a model of PTB-XL takes: 12 leads in mV, in PTB-XL's order and rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.signal import resample_poly

from datamodules.errors import InputError, MissingFileError
from datamodules.ptbxl import plausible
from datamodules.ptbxl.columns import Samples, read_samples
from datamodules.ptbxl.record import LEADS
from datamodules.ptbxl.wfdb_record import CorruptRecordError, segments

FillMissing = Literal["no", "derive", "zero"]
Implausible = Literal["refuse", "accept"]
_TABLES = (".csv", ".tsv")
_PLAIN = (".txt",)
ENDINGS = (".hea", ".npy", ".npz", *_TABLES, *_PLAIN, *(f"{ending}.gz" for ending in (*_TABLES, *_PLAIN)))
_KINDS = "a WFDB header, a .csv, .tsv or .txt (also .gz), a .npy or .npz"
MIN_SECONDS = 1.0
_TOLD = 3  # leads whose reason an error has

Floats = npt.NDArray[np.float64]
# Einthoven 1895 and Goldberger 1942: the limb leads are two measurements seen six times.
_DERIVED = {"III": (-1.0, 1.0), "AVR": (-0.5, -0.5), "AVL": (1.0, -0.5), "AVF": (-0.5, 1.0)}  # of I and II


@dataclass(frozen=True)
class Recording:
    """Recording in the form that a model takes.

    Attributes:
        name: of the record.
        signal: (L, 12) mV in the order of `LEADS`, 0 for missing samples and leads.
        missing: (L, 12), True there.
        sampling_rate: Hz, of `signal`.
        original_rate: Hz, of the file.
        notes: what was changed, or is odd.
    """

    name: str
    signal: Floats
    missing: npt.NDArray[np.bool_]
    sampling_rate: int
    original_rate: float
    notes: list[str]


def find_recordings(path: Path) -> list[Path]:
    """Locates the recordings of a path: a file, a WFDB record with or without .hea, or all in a folder.

    In a folder, .txt files count only if there is no other format; segments of a WFDB record are part of it.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if _ending(file) and file.is_file())
        if not found:
            raise MissingFileError(f"asked for the recordings in {path}, got none; it has no {_KINDS[2:]}")
        parts = {
            file.with_name(f"{name}.hea")
            for file in found
            if _ending(file) == ".hea"
            for name in segments(file.with_suffix(""))
        }
        found = [file for file in found if file not in parts]
        return [file for file in found if not _ending(file).startswith(_PLAIN)] or found
    candidates = [path] if _ending(path) else [path.with_suffix(".hea"), Path(f"{path}.hea")]
    for file in candidates:
        if file.is_file():
            return [file]
    if path.is_file():
        raise InputError(f"asked for the recording {path}, which is none that is read; give {_KINDS}, or a folder")
    raise MissingFileError(f"asked for the recording {path}, got no such file; name {_KINDS}, or a folder of them")


def _ending(path: Path) -> str:
    """Which of `ENDINGS` a path has, or ""."""
    name = path.name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def read_recording(
    path: Path,
    sampling_rate: int,
    *,
    given_rate: float | None = None,
    given_leads: Sequence[str] | None = None,
    fill_missing: FillMissing = "no",
    implausible: Implausible = "refuse",
) -> Recording:
    """Reads one recording, orders its leads and resamples it (polyphase, with a filter against aliasing).

    Args:
        path: a WFDB header (its checksums are compared); a table with a column or a row per lead in any usual dialect
            (`datamodules.ptbxl.table`); a .npy of shape (L, leads) or (leads, L), or a .npz of one such array or of
            one per lead. Without a unit, mV. Columns of times or row numbers are recognised.
        sampling_rate: Hz, of the model.
        given_rate: Hz, for a file that does not state it.
        given_leads: names of the columns in order, for a file that does not name them; any other name than a lead's,
            such as `x`, skips a column.
        fill_missing: handling of missing leads and samples: "no" raises; "derive" computes limb leads from I and II;
            "zero" does so too, and fills the rest with the mean, as in training.
        implausible: handling of recordings in which half of the leads or more are flat or too small for an ECG in mV,
            or one is too large: "refuse" raises; "accept" reads them unchanged, with a note.

    Raises:
        ValueError: naming the recording and its fault.
    """
    try:
        samples = read_samples(path, given_rate, given_leads)
        rate = samples.rate
        values, filled = _in_order(samples, fill_missing)
        missing: npt.NDArray[np.bool_] = np.isnan(values)
        _check(values, rate, fill_missing)
        odd = _check_plausible(values, rate, implausible)
    except CorruptRecordError as error:
        raise InputError(f"the recording {path} {error}") from error
    ratio = Fraction(sampling_rate) / Fraction(str(rate)).limit_denominator(1000)
    signal, notes = np.where(missing, 0.0, values), []
    if holed := [(lead, gaps) for lead, gaps in zip(LEADS, missing.T, strict=True) if 0 < gaps.sum() < len(gaps)]:
        odd.append("missing samples filled in " + ", ".join(plausible.gap(lead, gaps, rate) for lead, gaps in holed))
    if ratio != 1:
        signal = resample_poly(signal, ratio.numerator, ratio.denominator, axis=0, padtype="line")
        old = np.minimum(np.arange(len(signal)) * len(missing) // len(signal), len(missing) - 1)
        missing = missing[old]
        notes.append(f"resampled from {rate:g} to {sampling_rate} Hz")
    notes += [*filled, *samples.notes, *odd]
    name = path.name[: -len(_ending(path))] or path.stem
    return Recording(name, np.ascontiguousarray(signal), missing, sampling_rate, rate, notes)


def _in_order(samples: Samples, fill: FillMissing) -> tuple[Floats, list[str]]:
    """Orders samples to (L, 12) as `LEADS`, NaN for unknown ones; also returns what was filled in."""
    columns = {lead: trace for lead, trace in samples.leads.items() if not np.isnan(trace).all()}
    absent = [lead for lead in LEADS if lead not in columns]
    derived = [lead for lead in absent if lead in _DERIVED and {"I", "II"} <= columns.keys()] if fill != "no" else []
    for lead in derived:
        of_I, of_II = _DERIVED[lead]
        columns[lead] = of_I * columns["I"] + of_II * columns["II"]
    zero = [lead for lead in absent if lead not in derived]
    if zero and (fill != "zero" or not columns):
        remedy = "or --fill_missing zero" if fill == "derive" else "--fill_missing derive (limb leads) or zero"
        raise CorruptRecordError(
            f"has {len(samples.names)} leads ({', '.join(samples.names)}), without {', '.join(zero)}; give all twelve, "
            f"{remedy}"
        )
    length = len(next(iter(columns.values())))
    columns |= {lead: np.full(length, np.nan) for lead in zero}
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


def _check_plausible(values: Floats, rate: float, implausible: Implausible) -> list[str]:
    """Remarks on the leads of a recording.

    Raises:
        CorruptRecordError: at least half of them cannot be an ECG in mV, or one is too large.
    """
    known: npt.NDArray[np.bool_] = np.logical_not(np.isnan(values).all(axis=0))
    leads = [lead for lead, here in zip(LEADS, known, strict=True) if here]
    judgement = plausible.judge(leads, values[:, known], rate)
    faults = judgement.faults
    listed = ", ".join([f"{lead} ({reason})" if i < _TOLD else lead for i, (lead, reason) in enumerate(faults.items())])
    if implausible == "refuse" and faults and (judgement.too_large or 2 * len(faults) >= len(leads)):
        if all(reason.startswith("constant") for reason in faults.values()):
            what = "is flat: no lead carries a signal" if len(faults) == len(leads) else "is flat in most leads"
        elif judgement.too_large:
            what = "cannot be mV; convert it to mV"
        else:
            what = f"has leads that cannot be an ECG in mV, {len(faults)} of {len(leads)}"
        raise CorruptRecordError(f"{what}: {listed}; {judgement.cause}; or --implausible accept, if it is right")
    flat = [lead for lead, reason in faults.items() if reason.startswith("constant")]
    other = [f"{lead} ({reason})" for lead, reason in faults.items() if lead not in flat]
    notes = [f"flat: {', '.join(flat)}"] if flat else []
    notes += [f"implausible: {', '.join(other)}; {judgement.cause}"] if other else []
    return notes + judgement.remarks
