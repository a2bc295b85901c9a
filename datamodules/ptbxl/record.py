"""A WFDB record as 12 leads of int16 in microvolts, checked against its header."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodules.disk import leaves_its_folder
from datamodules.ptbxl.wfdb_record import Channel
from datamodules.ptbxl.wfdb_record import CorruptRecordError as CorruptRecordError
from datamodules.ptbxl.wfdb_record import read as _read_with_wfdb

LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
UNITS_PER_MILLIVOLT = 1000
SECONDS = 10
MISSING = -32768  # WFDB's mark of a missing sample in format 16
_LIMIT = 32767

_RECORD_LINE = re.compile(r"(\S+) (\d+) (\d+) (\d+)")
# file, format 16, gain(baseline)/mV, 16 bits, zero, first value, checksum, block size, lead
_SIGNAL_LINE = re.compile(r"(\S+) 16 1000(?:\.0)?(?:\(0\))?/mV 16 0 -?\d+ (-?\d+) 0 (\S+)")

Signal = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Record:
    """Record that was read.

    Attributes:
        signal: (L, 12) int16, 1000 units per mV, in the order of `LEADS`; -32768 for a missing sample.
        missing: leads with missing samples.
        flat: leads that are constant.
        saturated: leads that reach the limit of 16 bits.
    """

    signal: Signal
    missing: list[str]
    flat: list[str]
    saturated: list[str]


def read_record(root: Path, name: str, sampling_rate: int) -> Record:
    """Reads and checks the 10-second record `<root>/<name>.{hea,dat}`.

    Leads are put into the order of `LEADS`. Each lead's sum is compared with the header's checksum, modulo 65536, if
    there is one: wfdb itself reads corrupt samples without notice.

    Raises:
        CorruptRecordError: with the reason.
    """
    path = root / name
    if leaves_its_folder(name):
        raise CorruptRecordError("its path points outside the data folder")
    channels = read_channels(path)
    names = [channel.name.upper() for channel in channels]
    if other := {f"{channel.rate:g}" for channel in channels if channel.rate != sampling_rate}:
        raise CorruptRecordError(f"sampled at {', '.join(sorted(other))} Hz, expected {sampling_rate} Hz")
    if other := {channel.unit for channel in channels if channel.unit != "mV"}:
        raise CorruptRecordError(f"is in {', '.join(sorted(other))}, expected mV")
    if absent := [lead for lead in LEADS if lead not in names]:
        raise CorruptRecordError(f"has {len(names)} leads, without {', '.join(absent)}")
    if len(names) != len(LEADS):
        raise CorruptRecordError(f"has {len(names)} leads, expected {len(LEADS)}: {', '.join(LEADS)}")
    if len(channels[0].samples) != SECONDS * sampling_rate:
        raise CorruptRecordError(f"has {len(channels[0].samples)} samples per lead, expected {SECONDS * sampling_rate}")
    check_sums(channels)
    signal = _microvolts([channels[names.index(lead)] for lead in LEADS])
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


def read_channels(path: Path) -> list[Channel]:
    """Reads the WFDB record `<path>.hea` of any length, rate, format and leads; several segments become one.

    Raises:
        CorruptRecordError: with the reason.
    """
    return _read_plain(path) or _read_with_wfdb(path)


def check_sums(channels: Sequence[Channel]) -> None:
    """Raises CorruptRecordError that names the leads with a wrong checksum."""
    if wrong := [channel.name.upper() for channel in channels if channel.damaged]:
        raise CorruptRecordError(f"wrong checksum of lead {', '.join(wrong)}")


def _microvolts(channels: Sequence[Channel]) -> Signal:
    """Stacks channels in mV to (L, leads) int16."""
    samples = np.stack([channel.samples for channel in channels], axis=1)
    if samples.dtype == np.int16:
        return samples.astype(np.int16, copy=False)
    scaled = np.rint(samples * UNITS_PER_MILLIVOLT)
    return np.where(np.isnan(scaled), MISSING, np.clip(np.nan_to_num(scaled), -_LIMIT, _LIMIT)).astype(np.int16)


def _read_plain(path: Path) -> list[Channel] | None:
    """Reads a record written exactly as PTB-XL's are; returns None for any other, which is left to wfdb.

    wfdb spends 2 ms on such a header, a hundred times the time of the samples.
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
    sums = digital.sum(axis=0, dtype=np.int64)
    return [
        Channel(field[2], float(record[3]), "mV", digital[:, i], (int(sums[i]) - int(field[1])) % 65536 != 0)
        for i, field in enumerate(fields)
    ]
