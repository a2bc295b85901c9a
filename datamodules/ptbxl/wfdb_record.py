"""WFDB records of any kind as signals, each at its own rate: several samples per frame, skews, several segments.

The format: https://physionet.org/physiotools/wag/header-5.htm; the samples are decoded by the wfdb package.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import wfdb

from datamodules.errors import InputError

GAP = "~"  # a missing segment or file
_MOST_SAMPLES = 2**27  # of all signals of a record of several segments: a header can announce gaps of any length
# Names that the wfdb package accepts; published headers have others, e.g. `E00001.mat 12 500 5000` of record E00001.
_RECORD_NAME = re.compile(r"[-\w]+(/\d+)?", re.ASCII)
_FILE_NAME = re.compile(r"~?[-\w]*\.?\w*", re.ASCII)
_MICRO = str.maketrans({"\u00b5": "u", "\u03bc": "u", "\ufeff": None})  # wfdb drops the sign and assumes volts

Floats = npt.NDArray[np.float64]


class CorruptRecordError(InputError):
    """Record that contradicts its header or the data set; the message is the reason alone."""


class Channel(NamedTuple):
    """One signal of a WFDB record.

    Attributes:
        name: as in the header, or "".
        rate: Hz, including several samples per frame.
        unit: as in the header.
        samples: (L,) int16 microvolts, -32768 for missing ones, of a record in PTB-XL's format; of any other, float64
            in `unit`, NaN for missing ones.
        damaged: whether the sum of its samples differs from the header's checksum, modulo 65536.
    """

    name: str
    rate: float
    unit: str
    samples: npt.NDArray[np.int16] | Floats
    damaged: bool


class _Header(NamedTuple):
    """Record line, and lines of the signals or segments, split into words, without comments."""

    record: list[str]
    lines: list[list[str]]

    @property
    def segmented(self) -> bool:
        return "/" in self.record[0]


def segments(path: Path) -> list[str]:
    """Names of the records that `<path>.hea` consists of; none for a record of one segment, or no header.

    For a header that only describes the layout of such a record, its own name.
    """
    try:
        header = _read_header(path)
    except CorruptRecordError:
        return []
    if header.segmented:
        return [line[0] for line in header.lines]
    return [path.name] if {line[0] for line in header.lines} == {GAP} else []


def read(path: Path) -> list[Channel]:
    """Reads the signals of the record `<path>.hea`.

    Raises:
        CorruptRecordError: with the reason.
    """
    header = _read_header(path)
    return _read_segments(path, header) if header.segmented else _read_signals(path, header)


def _read_header(path: Path) -> _Header:
    """Checks what wfdb ignores, or answers with an obscure error."""
    name = f"{path.name}.hea"
    text = _text(path)
    record, *lines = [line.split() for line in text.splitlines() if line.strip() and line.strip()[0] != "#"] or [[]]
    if len(record) < 2 or not re.fullmatch("[0-9]+", record[1]):
        raise CorruptRecordError(f"{name} is not a WFDB header")
    # wfdb takes 250 Hz where it finds no number.
    if len(record) > 2 and not re.match(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?([/(]|$)", record[2], re.IGNORECASE):
        raise CorruptRecordError(f"{name} has {record[2]!r} for a sampling rate, expected Hz")
    segmented = re.fullmatch(r".+/(\d+)", record[0])
    count, kind = (int(segmented[1]), "segments") if segmented else (int(record[1]), "leads")
    if count != len(lines):
        raise CorruptRecordError(f"{name} announces {count} {kind} and describes {len(lines)}")
    if not lines:
        raise CorruptRecordError(f"{name} describes no signals")
    return _Header(record, lines)


def _text(path: Path) -> str:
    header = path.with_name(path.name + ".hea")
    if not header.is_file():
        raise CorruptRecordError(f"{header.name} is missing")
    content = header.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.translate(_MICRO)


def _read_signals(path: Path, header: _Header) -> list[Channel]:
    for line in header.lines:
        if line[0] == GAP:
            raise CorruptRecordError(f"{path.name}.hea only describes the layout of another record; name that one")
        if line[0] in ("..", ".") or "/" in line[0] or "\\" in line[0]:
            raise CorruptRecordError(f"cannot be read: {line[0]} is not a file beside its header")
        if not path.with_name(line[0]).is_file():
            raise CorruptRecordError(
                f"cannot be read: {line[0]} is missing; it holds the samples, copy it beside {path.name}.hea"
            )
        if len(line) < 3 or not re.match(r"[\d.]*[1-9]", line[2]):  # wfdb takes 200 units per mV instead of 0
            raise CorruptRecordError(f"{path.name}.hea has a lead without a positive ADC gain")
    # Records of one sample per frame are read as a matrix: for format 61, wfdb supports nothing else.
    single = not any(re.match(r"\d+x0*([2-9]|1\d)", line[1]) for line in header.lines)
    try:
        with _readable(path, header) as readable:
            # Unscaled and unshifted, as the checksums expect.
            record = wfdb.rdrecord(str(readable), physical=False, smooth_frames=single, ignore_skew=True)
        digital = list(record.d_signal.T if single else record.e_d_signal)
        physical = list(record.dac().T if single else record.dac(expanded=True))
        names, units = [name or "" for name in record.sig_name], [str(unit) for unit in record.units]
        frames, skews = [n or 1 for n in record.samps_per_frame], [skew or 0 for skew in record.skew]
        checksums, rate = list(record.checksum), float(record.fs)
    except Exception as error:  # wfdb raises almost anything on a broken header
        raise CorruptRecordError(f"cannot be read: {str(error) or type(error).__name__}") from error
    wrong = [
        checksum is not None and (int(signal.sum(dtype=np.int64)) - checksum) % 65536 != 0
        for signal, checksum in zip(digital, checksums, strict=True)
    ]
    return [
        Channel(name, rate * frame, unit, _earlier(signal, skew * frame), damaged)
        for name, frame, unit, signal, skew, damaged in zip(names, frames, units, physical, skews, wrong, strict=True)
    ]


def _earlier(samples: Floats, skew: int) -> Floats:
    """Moves a signal that is `skew` samples late in its file to its time."""
    return np.append(samples[skew:], np.full(min(skew, len(samples)), np.nan)) if skew else samples


@contextmanager
def _readable(path: Path, header: _Header) -> Iterator[Path]:
    """Yields the record under names and in an encoding that the wfdb package accepts."""
    files = [line[0] for line in header.lines]
    usual = _RECORD_NAME.fullmatch(header.record[0]) and all(map(_FILE_NAME.fullmatch, files))
    if usual and path.with_name(f"{path.name}.hea").read_bytes().isascii():
        yield path
        return
    with TemporaryDirectory() as folder:
        links = {file: f"d{i}.dat" for i, file in enumerate(dict.fromkeys(files))}
        for file, link in links.items():
            Path(folder, link).symlink_to(path.with_name(file).resolve())
        lines = [["r", *header.record[1:]], *([links[file], *rest] for file, *rest in header.lines)]
        Path(folder, "r.hea").write_text("\n".join(map(" ".join, lines)) + "\n")
        yield Path(folder, "r")


def _read_segments(path: Path, header: _Header) -> list[Channel]:
    """Joins segments; a signal is NaN where a segment lacks it. Gains may differ between segments."""
    parts: list[tuple[int, dict[str, Channel]]] = []
    units: dict[str, str] = {}
    rates: dict[str, float] = {}
    damaged = set()
    try:
        frame_rate = float(re.split("[/(]", header.record[2])[0]) if len(header.record) > 2 else 250.0
        lengths = [int(line[1]) for line in header.lines]
    except (ValueError, IndexError) as error:
        raise CorruptRecordError(f"{path.name}.hea is not a WFDB header") from error
    for (segment, *_), length in zip(header.lines, lengths, strict=True):
        channels: list[Channel] = []
        if segment != GAP and length:
            if not re.fullmatch(r"[-\w.]+", segment) or segment == path.name:
                raise CorruptRecordError(f"{path.name}.hea names a segment {segment!r}, which is no record beside it")
            part = path.with_name(segment)
            inner = _read_header(part)
            if inner.segmented:
                raise CorruptRecordError(f"{segment}.hea, a segment of {path.name}, has segments itself")
            channels = _read_signals(part, inner)
        for channel in channels:
            if units.setdefault(channel.name, channel.unit) != channel.unit:
                raise CorruptRecordError(
                    f"has {channel.name} in {units[channel.name]} and, in {segment}, in {channel.unit}"
                )
            if rates.setdefault(channel.name, channel.rate) != channel.rate:
                raise CorruptRecordError(f"has {channel.name} at several rates, as in {segment}")
            if len(channel.samples) != round(length * channel.rate / frame_rate):
                raise CorruptRecordError(
                    f"has {len(channel.samples)} samples of {channel.name} in {segment}, expected {length}"
                )
            if channel.damaged:
                damaged.add(channel.name)
        parts.append((length, {channel.name: channel for channel in channels}))
    frames = {name: round(rate / frame_rate) for name, rate in rates.items()}
    if sum(lengths) * sum(frames.values()) > _MOST_SAMPLES:
        raise CorruptRecordError(f"has {sum(lengths) / frame_rate / 3600:.0f} h; cut out the part that you ask about")
    if not rates:
        raise CorruptRecordError("has no segment with samples")
    return [
        Channel(
            name,
            rates[name],
            units[name],
            np.concatenate(
                [part[name].samples if name in part else np.full(n * frames[name], np.nan) for n, part in parts]
            ).astype(np.float64),
            name in damaged,
        )
        for name in rates
    ]
