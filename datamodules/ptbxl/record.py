"""One WFDB record as 12 leads of int16 in microvolts, checked against its header."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import wfdb

from datamodules.disk import leaves_its_folder
from datamodules.errors import InputError

LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
UNITS_PER_MILLIVOLT = 1000
MILLIVOLTS = {"mV": 1.0, "uV": 1e-3, "V": 1e3}  # of one unit
SECONDS = 10
MISSING = -32768  # WFDB's mark of a sample that was not measured, in format 16
_LIMIT = 32767

_RECORD_LINE = re.compile(r"(\S+) (\d+) (\d+) (\d+)")
# file, format 16, gain(baseline)/mV, 16 bits, zero, first value, checksum, block size, lead
_SIGNAL_LINE = re.compile(r"(\S+) 16 1000(?:\.0)?(?:\(0\))?/mV 16 0 -?\d+ (-?\d+) 0 (\S+)")

Signal = npt.NDArray[np.int16]


class CorruptRecordError(InputError):
    """A record that is not what its header, or the data set, says; the message is the reason alone."""


@dataclass(frozen=True)
class Record:
    """A record that was read: `signal` (L, 12) int16, 1000 units per mV, -32768 where a sample is missing, in the
    order of `LEADS`; and the leads that have missing samples, are constant, or reach the limit of 16 bits."""

    signal: Signal
    missing: list[str]
    flat: list[str]
    saturated: list[str]


def read_record(root: Path, name: str, sampling_rate: int) -> Record:
    """Reads and checks `<root>/<name>.{hea,dat}`, of 10 seconds.

    Leads are brought into the order of `LEADS`. Each lead's sum is compared with the header's checksum, modulo 65536,
    where the header has one: wfdb itself reads corrupted samples without a word.

    Raises:
        CorruptRecordError: with the reason.
    """
    path = root / name
    if leaves_its_folder(name):
        raise CorruptRecordError("its path points outside the data folder")
    raw = read_raw(path)
    rate, leads, digital = raw.sampling_rate, raw.leads, raw.digital
    if rate != sampling_rate:
        raise CorruptRecordError(f"sampled at {rate:g} Hz, expected {sampling_rate} Hz")
    names = [lead.upper() for lead in leads]
    if absent := [lead for lead in LEADS if lead not in names]:
        raise CorruptRecordError(f"has {len(names)} leads, without {', '.join(absent)}")
    if len(names) != len(LEADS):
        raise CorruptRecordError(f"has {len(names)} leads, expected {len(LEADS)}: {', '.join(LEADS)}")
    if len(digital) != SECONDS * sampling_rate:
        raise CorruptRecordError(f"has {len(digital)} samples per lead, expected {SECONDS * sampling_rate}")
    check_sums(raw)
    signal = raw.microvolts[:, [names.index(lead) for lead in LEADS]]
    return _graded(np.ascontiguousarray(signal))


def _graded(signal: Signal) -> Record:
    gap = signal == MISSING
    high = np.where(gap, -_LIMIT, signal).max(axis=0)
    low = np.where(gap, _LIMIT, signal).min(axis=0)
    flat = high <= low
    if flat.all():
        raise CorruptRecordError("no lead carries a signal")
    flags = (gap.any(axis=0), flat, ~flat & ((high == _LIMIT) | (low <= -_LIMIT)))
    return Record(signal, *([lead for lead, flag in zip(LEADS, flags_of, strict=True) if flag] for flags_of in flags))


class Raw(NamedTuple):
    """A record as its files have it: rate in Hz, names of the leads, samples (L, leads) as stored, their checksums, and
    the samples in microvolts (int16, `MISSING` where there is none)."""

    sampling_rate: float
    leads: list[str]
    digital: npt.NDArray[np.integer]
    checksums: list[int | None]
    microvolts: Signal


def read_raw(path: Path, units: Collection[str] = ("mV",)) -> Raw:
    """Reads `<path>.{hea,dat}` of any length, rate and leads.

    Args:
        path: of the record, without an ending.
        units: that are taken, of `MILLIVOLTS`.

    Raises:
        CorruptRecordError: with the reason.
    """
    return _read_plain(path) or _read_with_wfdb(path, units)


def check_sums(raw: Raw) -> None:
    """Raises CorruptRecordError naming the leads whose sum is not the header's checksum, modulo 65536."""
    sums = raw.digital.sum(axis=0, dtype=np.int64)
    wrong = [
        lead.upper()
        for lead, a, b in zip(raw.leads, sums, raw.checksums, strict=True)
        if b is not None and (int(a) - b) % 65536 != 0
    ]
    if wrong:
        raise CorruptRecordError(f"wrong checksum of lead {', '.join(wrong)}")


def _read_plain(path: Path) -> Raw | None:
    """A record written exactly as PTB-XL's are; None for any other, which is left to wfdb.

    wfdb spends 2 ms on such a header, a hundred times what the samples take.
    """
    try:
        first, *lines = path.with_name(path.name + ".hea").read_text("ascii").split("\n")
    except (OSError, UnicodeDecodeError):
        return None
    record = _RECORD_LINE.fullmatch(first.rstrip())
    signals = [_SIGNAL_LINE.fullmatch(line.rstrip()) for line in lines if line and not line.startswith("#")]
    if record is None or None in signals or len(signals) != int(record[2]):
        return None
    fields = [signal.groups() for signal in signals if signal is not None]
    file = f"{path.name}.dat"
    count, samples = len(fields), int(record[4])
    if not fields or any(field[0] != file for field in fields):
        return None
    try:
        content = path.with_name(file).read_bytes()
    except FileNotFoundError:
        raise CorruptRecordError(f"{file} is missing") from None
    except OSError as error:
        raise CorruptRecordError(f"cannot be read: {error.strerror}") from error
    if len(content) != 2 * count * samples:
        raise CorruptRecordError(f"{file} holds {len(content)} bytes, its header says {2 * count * samples}")
    digital = np.frombuffer(content, dtype="<i2").reshape(samples, count)
    leads: list[str] = [field[2] for field in fields]
    checksums: list[int | None] = [int(field[1]) for field in fields]
    return Raw(float(record[3]), leads, digital, checksums, digital)


def _check_header(path: Path) -> None:
    """What wfdb passes over, or answers with an error from deep inside."""
    header = path.with_name(path.name + ".hea")
    if not header.is_file():
        raise CorruptRecordError(f"{header.name} is missing")
    text = header.read_text("latin-1")
    first, *signals = [line.split() for line in text.splitlines() if line.strip() and line[0] != "#"] or [[]]
    if len(first) < 2 or not first[1].isdecimal():
        raise CorruptRecordError(f"{header.name} is not a WFDB header")
    if int(first[1]) != len(signals):
        raise CorruptRecordError(f"{header.name} announces {first[1]} leads and describes {len(signals)}")
    gains = [re.match(r"[\d.]*[1-9]", fields[2]) if len(fields) > 2 else None for fields in signals]
    if None in gains:  # wfdb takes 200 units per mV instead of 0
        raise CorruptRecordError(f"{header.name} has a lead without a positive ADC gain")


def _read_with_wfdb(path: Path, units: Collection[str]) -> Raw:
    """Any record that wfdb can read."""
    _check_header(path)
    try:
        record = wfdb.rdrecord(str(path), physical=False)
        digital = np.asarray(record.d_signal)
        checksums = list(record.checksum or [])
        physical = np.asarray(record.dac())
        found, leads, rate = list(map(str, record.units)), [name or "" for name in record.sig_name], float(record.fs)
    except Exception as error:  # wfdb meets broken headers with whatever its parsing runs into
        raise CorruptRecordError(f"cannot be read: {str(error) or type(error).__name__}") from error
    if not set(found) <= set(units):
        raise CorruptRecordError(f"is in {', '.join(sorted(set(found)))}, expected {' or '.join(units)}")
    scaled = np.rint(physical * [MILLIVOLTS[unit] * UNITS_PER_MILLIVOLT for unit in found])
    microvolts = np.where(np.isnan(scaled), MISSING, np.clip(np.nan_to_num(scaled), -_LIMIT, _LIMIT)).astype(np.int16)
    return Raw(rate, leads, digital, checksums or [None] * len(leads), microvolts)
