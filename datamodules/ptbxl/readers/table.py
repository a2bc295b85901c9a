"""Text tables: a column per lead, under a line of names, read by pandas.

The columns are separated by semicolons, tabs, commas or blanks. Between semicolons or tabs a comma is a decimal sign.
Above the names may stand lines such as `Sampling rate: 500 Hz`, below them a row of units. A column of times gives the
rate if its steps are equal. The exports of one lead from an Apple Watch have no names, but a line `Lead,Lead I`.
"""

import csv
import gzip
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from datamodules.ptbxl.errors import CorruptRecordError
from datamodules.ptbxl.leads import is_unit, read_name
from datamodules.ptbxl.readers.contents import Channel, Contents, Floats, names_of, sex_of, years

_MOST_BYTES = 2**30
_SEARCHED = 100  # lines in which the names are expected
_SEPARATORS = (";", "\t", ",", "")  # the last stands for blanks
_RATE_KEYS = {
    "sampling rate", "sampling frequency", "sample rate", "sample frequency", "fs", "abtastrate", "messrate"
}  # fmt: skip
_UNIT_KEYS, _LEAD_KEYS = {"unit", "units", "einheit"}, {"lead", "ableitung"}
_AGE_KEYS, _SEX_KEYS = {"age"}, {"sex", "gender"}
_FIELD = re.compile(r"[#%\s\"]*(?P<key>[^:=,;\t\"]+?)\s*(?:\(hz\)\s*)?\"?\s*[:=,;\t](?P<value>.+)", re.IGNORECASE)
_HERTZ = re.compile(r"(\d+(?:[.,]\d+)?)\s*(hz|hertz|khz)?", re.IGNORECASE)
_TIME = re.compile(
    r"(?:elapsed[ _]time|time|timestamp|datetime|date|t|zeit)"
    r"(?:[ _]*[(\[]?(?P<unit>s|sec|seconds|ms|milliseconds|us|\u00b5s|microseconds|ns|nanoseconds)[)\]]?)?"
    r"|(?P<alone>seconds|milliseconds|microseconds|nanoseconds)"
)
_SECONDS = {"m": 1e-3, "u": 1e-6, "\u00b5": 1e-6, "n": 1e-9}


class _Layout(NamedTuple):
    """Arrangement of a table.

    Attributes:
        separator: between the columns; "" stands for blanks.
        names: Names of the columns.
        fields: key, in lower case, and value of each line such as `Sampling rate: 500 Hz`.
        rows: the lines below the names, with their numbers.
    """

    separator: str
    names: list[str]
    fields: list[tuple[str, str]]
    rows: list[tuple[int, str]]


def read_table(path: Path, given_leads: Sequence[str] | None) -> Contents:
    """Reads a table whose rows are samples.

    Raises:
        CorruptRecordError: with the line and what was expected.
    """
    lines = [(number, line) for number, line in enumerate(_text(path).splitlines(), 1) if line.strip(' \t,;"')]
    layout = _layout(lines, given_leads)
    fields = layout.fields
    units = _row_of_units(layout)
    rows = layout.rows[1:] if units else layout.rows
    times = [name for name in layout.names if _TIME.fullmatch(_plain(name))]
    columns = [i for i, name in enumerate(layout.names) if name not in times]
    names = names_of([layout.names[i] for i in columns], given_leads)
    frame = _numbers(layout, rows)
    rate, notes = _rate(fields, {name: frame[layout.names.index(name)] for name in times})
    stated = next((value for key, value in fields if key in _UNIT_KEYS), None)
    channels = []
    for i, name in zip(columns, names, strict=True):
        samples = pd.to_numeric(frame[i], errors="coerce")
        wrong = (samples.isna() & frame[i].notna()).to_numpy()
        if read_name(name) and wrong.any():
            row = int(wrong.argmax())
            raise CorruptRecordError(
                f"is not a table of numbers: its line {rows[row][0]} has {str(frame[i].iloc[row])[:40]!r} for {name}"
            )
        channels.append(Channel(name, samples.to_numpy(np.float64), rate, units[i] if units else stated))
    age = next((years(value) for key, value in fields if key in _AGE_KEYS), None)
    sex = next((sex_of(value) for key, value in fields if key in _SEX_KEYS), None)
    return Contents(channels, False, age, sex, notes)


def _text(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError) as error:
        raise CorruptRecordError(f"cannot be read: {error}") from error
    if len(content) > _MOST_BYTES:
        raise CorruptRecordError(f"holds more than {_MOST_BYTES >> 20} MiB of text; cut out a part")
    for encoding in ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp1252"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise CorruptRecordError("is not a table of numbers: its bytes are no text")


def _layout(lines: list[tuple[int, str]], given_leads: Sequence[str] | None) -> _Layout:
    """Finds the line with names of leads, or without one the first row of numbers, whose names the user gave."""
    fields: list[tuple[str, str]] = []
    best, header, chosen = 0, 0, ""
    for index, (_, line) in enumerate(lines[:_SEARCHED]):
        if match := _FIELD.fullmatch(line):
            key = match["key"].strip().lower().replace("_", " ")
            fields.append((key, match["value"].strip(' ,;\t"')))
            if key in _LEAD_KEYS and read_name(_english(fields[-1][1])):
                continue
        separator = max(_SEPARATORS, key=lambda separator: _leads_in(line, separator))
        if not _is_comment(line) and _leads_in(line, separator) > best:
            best, header, chosen = _leads_in(line, separator), index, separator
    if best:
        return _Layout(chosen, _cells(lines[header][1], chosen), fields, _uncommented(lines[header + 1 :]))
    lead = next((_english(value) for key, value in fields if key in _LEAD_KEYS), None)
    rows = _uncommented(lines)
    for index, (_, line) in enumerate(rows[: _SEARCHED + 1]):
        if lead is not None and _is_number(line.strip(' ,;\t"').replace(",", ".")):
            # One column, in which a comma is a decimal sign; older exports end each line with one.
            return _Layout("", [lead], fields, [(number, text.strip(' ,;\t"')) for number, text in rows[index:]])
        separator = next((each for each in _SEPARATORS if each in line), "")
        cells = _cells(line, separator)
        if given_leads is not None and all(map(_is_number, (c.replace(",", ".") for c in cells[1:] or cells))):
            before = _cells(rows[index - 1][1], separator) if index else []
            names = before if len(before) == len(cells) else [""] * len(cells)
            return _Layout(separator, names, fields, rows[index:])
    return _Layout(",", _cells(rows[0][1], ",") if rows else [], fields, [])  # without a lead: an error


def _english(lead: str) -> str:
    return lead.replace("Ableitung ", "Lead ")


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith(("#", "%"))


def _uncommented(lines: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    return [(number, line) for number, line in lines if not _is_comment(line)]


def _cells(line: str, separator: str) -> list[str]:
    """Splits a line, without empty cells at its end."""
    if separator:
        quote = "'" if line.startswith("'") else '"'
        found = next(csv.reader([line], delimiter=separator, quotechar=quote, skipinitialspace=True))
    else:
        found = line.split()
    filled = [i for i, cell in enumerate(found, 1) if cell.strip()]
    return [cell.strip() for cell in found[: max(filled, default=0)]]


def _leads_in(line: str, separator: str) -> int:
    """Number of cells that are names of leads; between blanks, all but one must be, or the line is prose."""
    cells = _cells(line, separator)
    count = sum(read_name(cell) is not None for cell in cells)
    return count if separator or len(cells) - count <= 1 else 0


def _is_number(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return True


def _plain(name: str) -> str:
    return name.strip(" '\"").lower()


def _row_of_units(layout: _Layout) -> list[str] | None:
    """The units below the names, if every lead has one there, such as `mV` or `(uV)`."""
    cells = [cell.strip("'\"()[] ") for cell in _cells(layout.rows[0][1], layout.separator)] if layout.rows else []
    if len(cells) != len(layout.names):
        return None
    of_leads = [unit for name, unit in zip(layout.names, cells, strict=True) if read_name(name)]
    return cells if of_leads and all(map(is_unit, of_leads)) else None


def _numbers(layout: _Layout, rows: list[tuple[int, str]]) -> pd.DataFrame:
    """Reads the rows; a row of more or fewer cells than there are names is an error."""
    width, separator = len(layout.names), layout.separator
    quote = "'" if rows and rows[0][1].startswith("'") else '"'
    lines = [line for _, line in rows]
    split = csv.reader(lines, delimiter=separator, quotechar=quote) if separator else map(str.split, lines)
    for (number, _), cells in zip(rows, split, strict=False):
        if len(cells) < width or any(cell.strip() for cell in cells[width:]):
            raise CorruptRecordError(
                f"is not a table of numbers: its line {number} has {len(cells)} columns, and {width} have names"
            )
    if not rows:
        raise CorruptRecordError("is not a table of numbers: it has no rows")
    commas = separator != "," and any("," in line for line in lines[:_SEARCHED])
    try:
        frame = pd.read_csv(
            io.StringIO("\n".join(lines)),
            sep=separator or r"\s+",
            decimal="," if commas else ".",
            quotechar=quote,
            header=None,
            skipinitialspace=True,
            skip_blank_lines=False,
            low_memory=False,
        )
    except (ValueError, pd.errors.ParserError) as error:
        raise CorruptRecordError(f"is not a table of numbers: {error}") from error
    return frame.iloc[:, :width]


def _rate(fields: list[tuple[str, str]], times: dict[str, "pd.Series[float]"]) -> tuple[float | None, list[str]]:
    """Rate in Hz by the lines above the names or by columns of times, None where they say nothing or disagree.

    Of the lines only those are read whose key is one of a few; numbers of other lines never count.

    Returns:
        The rate, and notes on what says nothing.
    """
    rates: list[tuple[str, float]] = []
    notes = []
    for key, value in fields:
        if key not in _RATE_KEYS:
            continue
        if match := _HERTZ.fullmatch(value):
            unit = 1000 if (match[2] or "").lower() == "khz" else 1
            rates.append((f"its line {key!r}", float(match[1].replace(",", ".")) * unit))
        else:
            notes.append(f"its line {key!r} says {value!r}, which is no rate in Hz")
    for name, column in times.items():
        found = _rate_of(column, _plain(name))
        if found is None:
            notes.append(f"its column {name!r} is not in equal steps of a known unit")
        else:
            rates.append((f"its column {name!r}", found))
    values = [rate for _, rate in rates]
    if values and max(values) - min(values) > 2e-3 * max(values):
        return None, [*notes, "disagreeing: " + ", ".join(f"{rate:g} Hz by {by}" for by, rate in rates)]
    return next(iter(values), None), notes


def _rate_of(column: "pd.Series[float]", name: str) -> float | None:
    """Rate in Hz of a column of times, or None if its steps are unequal or too coarse."""
    match = _TIME.fullmatch(name)
    unit = (match["unit"] or match["alone"] or "s") if match else "s"
    if pd.api.types.is_numeric_dtype(column):
        # Integers of nanoseconds need the subtraction first.
        elapsed = (column - column.iloc[0]).to_numpy(np.float64) * (1.0 if unit[0] == "s" else _SECONDS[unit[0]])
    else:
        elapsed = _clock(column)
    count = len(elapsed) - 1
    step = elapsed[-1] / count if count > 0 else 0.0
    if not step > 0 or not (np.abs(elapsed - step * np.arange(count + 1)) <= 0.6 * step).all():
        return None
    rate = 1 / step
    # To the nearest integer, if that is off by less than one sample over the whole recording.
    return float(round(rate)) if abs(rate - round(rate)) * elapsed[-1] < 1 else rate


def _clock(column: "pd.Series[float]") -> Floats:
    """Converts texts such as 0:00.002, 12:30:00.002 and 2024-01-31T12:30:00.002 to seconds; NaN if they are none."""
    texts = column.astype(str).str.strip("'\"[] ")
    try:
        if re.match(r"\d{4}-\d\d-\d\d", texts.iloc[0]):
            moments = pd.to_datetime(texts, format="ISO8601")
            return (moments - moments.iloc[0]).dt.total_seconds().to_numpy().astype(np.float64)
        spans = pd.to_timedelta(texts.where(texts.str.count(":") > 1, "0:" + texts)).dt.total_seconds()
        return (spans - spans.iloc[0]).to_numpy().astype(np.float64)
    except (ValueError, TypeError, OverflowError):
        return np.full(len(column), np.nan)
