"""WFDB records, decoded by the wfdb package: any format, several samples per frame, skews, several segments.

wfdb reads what contradicts its header without notice: an unreadable rate becomes 250 Hz, a gain of 0 becomes 200,
corrupt samples are taken as they are. So the header is checked first, and the samples are compared with its checksums.
The format: https://physionet.org/physiotools/wag/header-5.htm
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import wfdb

from datamodules.ptbxl.errors import CorruptRecordError
from datamodules.ptbxl.readers.contents import Channel, Contents, Floats, names_of, sex_of, years

_GAP = "~"  # a missing segment or file
_MOST_SAMPLES = 2**27  # of all signals of a record of several segments: a header can announce gaps of any length
_CLEANED = str.maketrans({"\u00b5": "u", "\u03bc": "u", "\ufeff": None})  # wfdb drops the sign and assumes volts
# `# Age: 63` on a line of its own, or `# <age>: 63 <sex>: F`.
_AGE, _SEX = (re.compile(rf"(?:^#\s*|<){w}>?\s*:([^<\n]*)", re.I | re.M) for w in ("age", "sex"))


class _Header(NamedTuple):
    """Record line, and lines of the signals or segments, split into words; and the whole text."""

    record: list[str]
    lines: list[list[str]]
    text: str

    @property
    def segmented(self) -> bool:
        return "/" in self.record[0]


def read_wfdb(path: Path, given_leads: Sequence[str] | None) -> Contents:
    """Reads the record of a header.

    Raises:
        CorruptRecordError: with the reason.
    """
    header = _read_header(path)
    channels = _read_segments(path, header) if header.segmented else _read_signals(path, header)
    names = names_of([channel.name for channel in channels], given_leads)
    age, sex = _AGE.search(header.text), _SEX.search(header.text)
    named = [channel._replace(name=name) for channel, name in zip(channels, names, strict=True)]
    return Contents(named, True, years(age[1]) if age else None, sex_of(sex[1]) if sex else None, [])


def segments(path: Path) -> list[Path]:
    """Headers that are a part of the record of a header: its segments, or itself if it only describes a layout."""
    try:
        header = _read_header(path)
        if header.segmented:
            return [_beside(path, f"{line[0]}.hea") for line in header.lines if line[0] != _GAP]
    except (CorruptRecordError, OSError):
        return []
    return [path] if {line[0] for line in header.lines} == {_GAP} else []


def _beside(path: Path, name: str) -> Path:
    """File of a name in a header's folder, in upper or lower case.

    Raises:
        CorruptRecordError: there is none, or the name leaves the folder.
    """
    if "/" in name or "\\" in name or name in (".", ".."):
        raise CorruptRecordError(f"cannot be read: {name} is not a file beside its header")
    if path.with_name(name).is_file():
        return path.with_name(name)
    for file in path.parent.iterdir():
        if file.name.lower() == name.lower() and file.is_file():
            return file
    raise CorruptRecordError(f"cannot be read: {name} is missing; copy it beside {path.name}")


def _read_header(path: Path) -> _Header:
    content = path.read_bytes()
    try:
        text = content.decode().translate(_CLEANED)
    except UnicodeDecodeError:
        text = content.decode("latin-1").translate(_CLEANED)
    record, *lines = [line.split() for line in text.splitlines() if line.strip() and line.strip()[0] != "#"] or [[]]
    if len(record) < 2 or not re.fullmatch("[0-9]+", record[1]):
        raise CorruptRecordError(f"{path.name} is not a WFDB header")
    if len(record) > 2 and not re.match(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?([/(]|$)", record[2], re.IGNORECASE):
        raise CorruptRecordError(f"{path.name} has {record[2]!r} for a sampling rate, expected Hz")
    segmented = re.fullmatch(r".+/(\d+)", record[0])
    count, kind = (int(segmented[1]), "segments") if segmented else (int(record[1]), "leads")
    if count != len(lines) or not lines:
        raise CorruptRecordError(f"{path.name} announces {count} {kind} and describes {len(lines)}")
    return _Header(record, lines, text)


def _read_signals(path: Path, header: _Header) -> list[Channel]:
    for line in header.lines:
        if line[0] == _GAP:
            raise CorruptRecordError(f"{path.name} only describes the layout of another record; name that one")
        if len(line) < 3 or not re.match(r"[\d.]*[1-9]", line[2]):
            raise CorruptRecordError(f"{path.name} has a lead without a positive ADC gain")
    # Records of one sample per frame are read as a matrix: for format 61, wfdb supports nothing else.
    single = not any(re.match(r"\d+x0*([2-9]|1\d)", line[1]) for line in header.lines)
    with _linked(path, header) as linked:
        try:
            # Unscaled and unshifted, as the checksums expect.
            record = wfdb.rdrecord(str(linked), physical=False, smooth_frames=single, ignore_skew=True)
            digital = list(record.d_signal.T if single else record.e_d_signal)
            physical = list(record.dac().T if single else record.dac(expanded=True))
            channels = []
            wrong = []
            for i, (name, unit) in enumerate(zip(record.sig_name, record.units, strict=True)):
                frames, skew = record.samps_per_frame[i] or 1, record.skew[i] or 0
                checksum = record.checksum[i]
                if checksum is not None and (int(digital[i].sum(dtype=np.int64)) - checksum) % 65536:
                    wrong.append(name or "without a name")
                samples = _earlier(physical[i], skew * frames)
                channels.append(Channel(name or "", samples, float(record.fs) * frames, str(unit)))
        except Exception as error:  # wfdb raises almost anything on a broken header
            raise CorruptRecordError(f"cannot be read: {str(error) or type(error).__name__}") from error
    if wrong:
        raise CorruptRecordError(f"wrong checksum of lead {', '.join(wrong)}")
    return channels


def _earlier(samples: Floats, skew: int) -> Floats:
    """Moves a signal that is `skew` samples late in its file to its time."""
    return np.append(samples[skew:], np.full(min(skew, len(samples)), np.nan)) if skew else samples


@contextmanager
def _linked(path: Path, header: _Header) -> Iterator[Path]:
    """Yields a record with links to the files, under names and in an encoding that the wfdb package accepts."""
    files = {line[0]: _beside(path, line[0]) for line in header.lines}
    with TemporaryDirectory() as folder:
        names = {file: f"d{i}.dat" for i, file in enumerate(files)}
        for file, name in names.items():
            Path(folder, name).symlink_to(files[file].resolve())
        lines = [["r", *header.record[1:]], *([names[file], *rest] for file, *rest in header.lines)]
        Path(folder, "r.hea").write_text("\n".join(map(" ".join, lines)) + "\n", "ascii", "replace")
        yield Path(folder, "r")


def _read_segments(path: Path, header: _Header) -> list[Channel]:
    """Joins segments; a signal is NaN where a segment lacks it. Gains may differ between segments."""
    try:
        frame_rate = float(re.split("[/(]", header.record[2])[0]) if len(header.record) > 2 else 250.0
        lengths = [int(line[1]) for line in header.lines]
    except (ValueError, IndexError) as error:
        raise CorruptRecordError(f"{path.name} is not a WFDB header") from error
    if sum(lengths) * int(header.record[1]) > _MOST_SAMPLES:
        raise CorruptRecordError(f"has {sum(lengths) / frame_rate / 3600:.0f} h; cut out the part that you ask about")
    known: dict[str, Channel] = {}
    parts: list[dict[str, Channel]] = []
    for (name, *_), length in zip(header.lines, lengths, strict=True):
        parts.append({})
        if name == _GAP or not length:
            continue
        segment = _beside(path, f"{name}.hea")
        inner = _read_header(segment)
        if inner.segmented:
            raise CorruptRecordError(f"has a segment {name} that has segments itself")
        for channel in _read_signals(segment, inner):
            first = known.setdefault(channel.name, channel)
            if (first.rate, first.unit) != (channel.rate, channel.unit):
                raise CorruptRecordError(f"has {channel.name} in several units or at several rates, as in {name}")
            if len(channel.samples) != round(length * (channel.rate or 0) / frame_rate):
                raise CorruptRecordError(f"has {len(channel.samples)} samples in {name}, expected {length}")
            parts[-1][channel.name] = channel
    joined = []
    for name, first in known.items():
        frames = round((first.rate or 0) / frame_rate)
        pieces = [
            part[name].samples if name in part else np.full(length * frames, np.nan)
            for part, length in zip(parts, lengths, strict=True)
        ]
        joined.append(first._replace(samples=np.concatenate(pieces)))
    if not joined:
        raise CorruptRecordError("has no segment with samples")
    return joined
