"""A user's ECG in the form that a model of PTB-XL takes: 12 leads in mV, in PTB-XL's order and rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.signal import resample_poly

from datamodules.ptbxl.amplitude import check_amplitude
from datamodules.ptbxl.errors import CorruptRecordError
from datamodules.ptbxl.leads import DERIVED, LEADS, millivolts, read_name
from datamodules.ptbxl.readers import READERS, ending
from datamodules.ptbxl.readers.contents import Channel, Contents, Floats, checked_rate
from datamodules.ptbxl.readers.wfdb_record import segments
from msssm.errors import InputError, MissingFileError

FillMissing = Literal["no", "derive", "zero"]
Implausible = Literal["refuse", "accept"]
Unit = Literal["mV", "uV", "nV", "V"]
_KINDS = "a WFDB header (.hea), an .edf, .bdf or .dcm, a .csv, .tsv or .txt (also .gz), a .npy or .npz"
MIN_SECONDS = 1.0
TRACE = 60.0  # s
STILL = 1.0  # s without any change, after which a lead counts as silent

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Recording:
    """Recording in the form that a model takes.

    Attributes:
        name: Name of the file, without its ending.
        signal: (L, 12) mV in the order of `LEADS`, 0 for missing samples and leads.
        missing: (L, 12), True there.
        sampling_rate: Hz, of `signal`.
        original_rate: Hz, of the file.
        trace: (L, 12) mV, the first minute at the file's own rate, 0 for missing samples and leads.
        silent: seconds of each lead that are missing or do not change for a second or longer, where there are any.
        age: in years, if the file says so.
        sex: "female" or "male", likewise.
        notes: what was changed, or is odd.
    """

    name: str
    signal: Floats
    missing: Flags
    sampling_rate: int
    original_rate: float
    trace: Floats
    silent: dict[str, float]
    age: float | None
    sex: str | None
    notes: list[str]


def find_recordings(path: Path) -> list[Path]:
    """Locates the recordings of a path: a file, a WFDB record with or without .hea, or all in a folder.

    In a folder, .txt files count only if there is no other format; segments of a WFDB record are part of it.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if ending(file) and file.is_file())
        if not found:
            raise MissingFileError(f"asked for the recordings in {path}, got none; it has no {_KINDS[2:]}")
        parts = {part for file in found if ending(file) == ".hea" for part in segments(file)}
        found = [file for file in found if file not in parts]
        return [file for file in found if not ending(file).startswith(".txt")] or found
    candidates = [path] if ending(path) else [path.with_suffix(".hea"), path.with_suffix(".HEA"), Path(f"{path}.hea")]
    for file in candidates:
        if file.is_file():
            return [file]
    if path.is_file():
        raise InputError(f"asked for the recording {path}, which is none that is read; give {_KINDS}, or a folder")
    raise MissingFileError(f"asked for the recording {path}, got no such file; name {_KINDS}, or a folder of them")


def read_recording(
    path: Path,
    sampling_rate: int,
    *,
    given_rate: float | None = None,
    given_unit: Unit | None = None,
    given_leads: Sequence[str] | None = None,
    fill_missing: FillMissing = "no",
    implausible: Implausible = "refuse",
) -> Recording:
    """Reads one recording, orders its leads and resamples it (polyphase, with a filter against aliasing).

    The three given values win over what a table or an array says; a WFDB header they must not contradict.

    Args:
        path: a file of one of `READERS`.
        sampling_rate: Hz, of the model.
        given_rate: Hz.
        given_unit: of all leads; without it and without one in the file, mV.
        given_leads: names of the columns in order; any other name than a lead's, such as `x`, skips a column.
        fill_missing: handling of missing leads and samples: "no" raises; "derive" computes limb leads from I and II;
            "zero" does so too, and fills the rest with the mean, as in training.
        implausible: handling of recordings whose amplitude cannot be that of an ECG in mV: "refuse" raises; "accept"
            reads them unchanged, with a note.

    Raises:
        ValueError: naming the recording and its fault.
    """
    try:
        contents = READERS[ending(path)](path, given_leads)
        channels, notes = _leads(contents, given_rate, given_unit)
        for lead, channel in channels.items():
            if np.isinf(channel.samples).any():
                raise CorruptRecordError(f"has infinite values in {lead}")
        channels = {lead: each for lead, each in channels.items() if not np.isnan(each.samples).all()}
        absent, filled = _absent(contents, channels, fill_missing)
        gaps = {lead: np.isnan(channel.samples) for lead, channel in channels.items()}
        if fill_missing != "zero" and any(gap.any() for gap in gaps.values()):
            listed = ", ".join(f"{lead} ({gap.sum()})" for lead, gap in gaps.items() if gap.any())
            raise CorruptRecordError(f"has missing samples (NaN) in {listed}; cut them out, or --fill_missing zero")
        seconds = min((len(each.samples) / (each.rate or 1) for each in channels.values()), default=0.0)
        if seconds < MIN_SECONDS:
            raise CorruptRecordError(f"has {seconds:.2f} s, expected at least {MIN_SECONDS:g} s")
        odd = check_amplitude(
            {lead: each.samples for lead, each in channels.items()}, given_unit or "mV", accept=implausible == "accept"
        )
    except CorruptRecordError as error:
        raise InputError(f"the recording {path} {error}") from error
    except OSError as error:
        raise InputError(f"the recording {path} cannot be read: {error.strerror or error}") from error
    rates = {lead: channel.rate or 0.0 for lead, channel in channels.items()}
    if other := sorted({rate for rate in rates.values() if rate != sampling_rate}):
        filled.insert(0, f"resampled from {' and '.join(f'{rate:g}' for rate in other)} to {sampling_rate} Hz")
    if holed := [f"{lead} ({gap.sum() / rates[lead]:.2f} s)" for lead, gap in gaps.items() if gap.any()]:
        odd.append(f"missing samples filled in {', '.join(holed)}")
    silent = {lead: _silent(channel.samples, rates[lead]) for lead, channel in channels.items()}
    signal, missing = _in_order(channels, absent, sampling_rate)
    own_rate = max(rates.values())
    first = {lead: each._replace(samples=each.samples[: round(TRACE * rates[lead])]) for lead, each in channels.items()}
    trace, _ = _in_order(first, absent, own_rate)
    return Recording(
        path.name[: -len(ending(path))],
        signal,
        missing,
        sampling_rate,
        own_rate,
        trace,
        {lead: seconds for lead, seconds in silent.items() if seconds},
        contents.age,
        contents.sex,
        [*filled, *notes, *contents.notes, *odd],
    )


def _leads(
    contents: Contents, given_rate: float | None, given_unit: str | None
) -> tuple[dict[str, Channel], list[str]]:
    """Channels of the leads in mV, each with a rate, and notes."""
    found: dict[str, Channel] = {}
    unused, notes = [], []
    stated = {channel.rate for channel in contents.channels if channel.rate is not None and read_name(channel.name)}
    rate = _rate(max(stated, default=None), given_rate, contents)
    for channel in contents.channels:
        name = read_name(channel.name)
        if name is None:
            unused.append(channel.name or "one without a name")
            continue
        if name.lead in found:
            raise CorruptRecordError(f"has lead {name.lead} more than once")
        unit = name.unit or channel.unit
        if contents.binding and given_unit and unit and millivolts(unit) != millivolts(given_unit):
            raise CorruptRecordError(f"is in {unit} by its header, and --unit says {given_unit}; mend one of them")
        factor = name.sign * millivolts(given_unit or unit or "mV")
        own_rate = channel.rate if contents.binding and channel.rate else rate
        found[name.lead] = Channel(name.lead, channel.samples * factor, own_rate, "mV")
        if name.sign < 0:
            notes.append(f"{channel.name} turned over to {name.lead}")
        if name.modified:
            notes.append(f"{channel.name} taken as {name.lead}")
    return found, [*notes, f"not used: {', '.join(unused)}"] if unused else notes


def _rate(stated: float | None, given: float | None, contents: Contents) -> float:
    if given is None and stated is None:
        raise CorruptRecordError("; ".join(["needs a sampling rate in Hz: --sampling_rate 500", *contents.notes]))
    if given is None:
        return checked_rate(stated or 0.0, "its header" if contents.binding else "what it says")
    if contents.binding and stated is not None and given != stated:
        raise CorruptRecordError(
            f"is sampled at {stated:g} Hz by its header, and --sampling_rate says {given:g}; leave the option out, or "
            "mend the file"
        )
    if stated is not None and given != stated:
        contents.notes.append(f"taken for {given:g} Hz as given; the file says {stated:g} Hz")
    return checked_rate(given, "--sampling_rate")


def _absent(contents: Contents, channels: dict[str, Channel], fill: FillMissing) -> tuple[list[str], list[str]]:
    """Leads that are to be filled with the mean, and notes on all that are not in the file.

    Raises:
        CorruptRecordError: they must not be filled.
    """
    absent = [lead for lead in LEADS if lead not in channels]
    derived = [lead for lead in absent if lead in DERIVED and {"I", "II"} <= channels.keys()] if fill != "no" else []
    rest = [lead for lead in absent if lead not in derived]
    if rest and (fill != "zero" or not channels):
        names = [channel.name for channel in contents.channels]
        remedy = "or --fill_missing zero" if fill == "derive" else "--fill_missing derive (limb leads) or zero"
        raise CorruptRecordError(
            f"has {len(names)} leads ({', '.join(names)}), without {', '.join(rest)}; give all twelve, {remedy}"
        )
    notes = [f"derived from I and II: {', '.join(derived)}"] if derived else []
    return rest, notes + ([f"missing, filled: {', '.join(rest)}"] if rest else [])


def _silent(samples: Floats, rate: float) -> float:
    """Seconds that are missing, or within stretches of at least `STILL` without a change."""
    same = np.concatenate([[False], np.diff(samples) == 0, [False]])
    edges = np.flatnonzero(np.diff(same.astype(np.int8)))
    lengths = edges[1::2] - edges[::2]
    still = lengths[lengths >= STILL * rate].sum()
    return float((still + np.isnan(samples).sum()) / rate)


def _in_order(channels: dict[str, Channel], absent: list[str], sampling_rate: float) -> tuple[Floats, Flags]:
    """Signal and missing samples, (L, 12) in the order of `LEADS`, at a rate."""
    resampled = {lead: _resampled(channel, sampling_rate) for lead, channel in channels.items()}
    length = min(len(signal) for signal, _ in resampled.values())
    resampled = {lead: (signal[:length], gap[:length]) for lead, (signal, gap) in resampled.items()}
    for lead in LEADS:
        if lead in absent:
            resampled[lead] = np.zeros(length), np.ones(length, dtype=np.bool_)
        elif lead not in resampled:
            (of_I, of_II), (I, gap_I), (II, gap_II) = DERIVED[lead], resampled["I"], resampled["II"]  # noqa: E741
            gap = gap_I | gap_II
            resampled[lead] = np.where(gap, 0.0, of_I * I + of_II * II), gap
    signals, gaps = zip(*(resampled[lead] for lead in LEADS), strict=True)
    return np.stack(signals, axis=1), np.stack(gaps, axis=1)


def _resampled(channel: Channel, sampling_rate: float) -> tuple[Floats, Flags]:
    """A channel at another rate, 0 for missing samples, and which are missing."""
    gap: Flags = np.isnan(channel.samples)
    signal = np.where(gap, 0.0, channel.samples)
    ratio = Fraction(str(sampling_rate)).limit_denominator(1000) / Fraction(str(channel.rate)).limit_denominator(1000)
    if ratio != 1:
        signal = resample_poly(signal, ratio.numerator, ratio.denominator, padtype="line")
        gap = gap[np.minimum(np.arange(len(signal)) * len(gap) // len(signal), len(gap) - 1)]
    return signal, gap
