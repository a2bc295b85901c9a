"""A record of PTB-XL as 12 leads of int16 in microvolts, checked against its header.

Only headers written as PTB-XL's are read, without the wfdb package, which spends a hundred times as long on them.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodules.disk import leaves_its_folder
from datamodules.ptbxl.errors import CorruptRecordError
from datamodules.ptbxl.leads import LEADS

UNITS_PER_MILLIVOLT = 1000
SECONDS = 10
MISSING = -32768  # WFDB's mark of a missing sample in format 16
_LIMIT = 32767

_RECORD_LINE = re.compile(r"(\S+) ([0-9]+) ([0-9]+) ([0-9]+)")
# file, format 16, gain(baseline)/mV, 16 bits, zero, first value, checksum, block size, lead
_SIGNAL_LINE = re.compile(r"(\S+) 16 1000(?:\.0)?(?:\(0\))?/mV 16 0 -?[0-9]+ (-?[0-9]+) 0 (\S+)")

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

    Leads are put into the order of `LEADS`. Each lead's sum is compared with the header's checksum, modulo 65536.

    Raises:
        CorruptRecordError: with the reason.
    """
    if leaves_its_folder(name):
        raise CorruptRecordError("its path points outside the data folder")
    path = root / name
    header, data = path.with_name(f"{path.name}.hea"), path.with_name(f"{path.name}.dat")
    lines = [line.rstrip() for line in _read(header).decode("latin-1").split("\n")]
    first, *rest = [line for line in lines if line and not line.startswith("#")] or [""]
    record = _RECORD_LINE.fullmatch(first)
    signals = [match for line in rest if (match := _SIGNAL_LINE.fullmatch(line)) and match[1] == data.name]
    if record is None or len(signals) != len(rest):
        raise CorruptRecordError(
            f"{header.name} is not a header of PTB-XL, whose lines of leads are like "
            f"'{data.name} 16 1000.0(0)/mV 16 0 -119 1508 0 I'"
        )
    leads = [signal[3].upper() for signal in signals]
    expected = {"leads": len(LEADS), "Hz": sampling_rate, "samples per lead": SECONDS * sampling_rate}
    for (what, wanted), text in zip(expected.items(), record.groups()[1:], strict=True):
        if int(text) != wanted:
            raise CorruptRecordError(f"has {text} {what}, expected {wanted}")
    if sorted(leads) != sorted(LEADS):
        raise CorruptRecordError(f"has the leads {', '.join(leads)}, expected {', '.join(LEADS)}")
    content = _read(data)
    size = 2 * len(LEADS) * SECONDS * sampling_rate
    if len(content) != size:
        raise CorruptRecordError(f"{data.name} holds {len(content)} bytes, its header says {size}")
    digital = np.frombuffer(content, dtype="<i2").reshape(-1, len(LEADS))
    sums = digital.sum(axis=0, dtype=np.int64)
    if wrong := [
        lead for lead, total, signal in zip(leads, sums, signals, strict=True) if (int(total) - int(signal[2])) % 65536
    ]:
        raise CorruptRecordError(f"wrong checksum of lead {', '.join(wrong)}")
    return _graded(np.ascontiguousarray(digital[:, [leads.index(lead) for lead in LEADS]]))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CorruptRecordError(f"{path.name} is missing") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise CorruptRecordError(f"cannot be read: {error}") from error


def _graded(signal: Signal) -> Record:
    gap = signal == MISSING
    high = np.where(gap, -_LIMIT, signal).max(axis=0)
    low = np.where(gap, _LIMIT, signal).min(axis=0)
    flat = high <= low
    if flat.all():
        raise CorruptRecordError("no lead carries a signal")
    flags = (gap.any(axis=0), flat, ~flat & ((high == _LIMIT) | (low <= -_LIMIT)))
    return Record(signal, *([lead for lead, flag in zip(LEADS, flags_of, strict=True) if flag] for flags_of in flags))
