"""Text tables of samples in the dialects of devices and programs, as columns of numbers.

Commas, semicolons, tabs, bars or blanks between the columns; decimal points or commas; UTF-8, UTF-16 or Latin-1; lines
before the header (`# sampling_rate: 500`, `Sample Rate,512 hertz`), a row of units, names with units; a lead per column
or per row; compressed by gzip or not.
"""

import csv
import gzip
import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from datamodules.ptbxl.leads import is_unit, read_name
from datamodules.ptbxl.wfdb_record import CorruptRecordError

_MOST_BYTES = 2**30
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas", r"\s+": "blanks"}
_PROBED = 20  # lines from which the dialect is found
_SHARE = 0.75  # of the columns that are numbers, where some hold marks or labels
_MOST_LEADS = 40  # rows of a table that has a lead in each
_MISSING = {"", "nan", "na", "n/a", "#n/a", "null", "none", "-", "--", "."}
_COMMENT = ("#", "%", "//")
_POINT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+|(?P<grouped>\d{1,3}(,\d{3})+(\.\d*)?))(e[+-]?\d+)?|[+-]?inf(inity)?", re.I)
_COMMA = re.compile(r"[+-]?(\d+,?\d*|,\d+|(?P<grouped>\d{1,3}(\.\d{3})+(,\d*)?))(e[+-]?\d+)?|[+-]?inf(inity)?", re.I)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_RATE = re.compile(
    r"\b(sampl\w*[\s_\-]*(?:rate|freq\w*)|fs|f_s|sfreq|srate|abtast\w*|freq(?:uency)?|sampl\w*[\s_\-]*(?:interval|period))"
    r"\b[\s\"']*(?:[(\[](?P<bracket>\w+)[)\]])?[\s\"']*[:=,;\t][\s\"':=,;]*(?P<value>[^\s,;\"']+)[\s\"']*(?P<unit>[a-zµ/]*)",
    re.IGNORECASE,
)
_UNIT = re.compile(r"\bunits?\b[\s\"']*[:=,;\t][\s\"':=,;]*(?P<value>[^\s,;\"']+)", re.IGNORECASE)
_LEAD = re.compile(r"^[#%/\s]*leads?\b[\s\"']*[:=,;\t][\s\"':=,;]*(?P<value>[^,;\"']+)", re.IGNORECASE)


class Table(NamedTuple):
    """Columns of a table.

    Attributes:
        frame: (L, columns); numbers, or texts in a column of times.
        names: of the columns, possibly with units; None if the table has none.
        rate: Hz, from the lines before the header, or None.
        source: of the rate.
        unit: from the lines before the header, for columns without their own, or None.
        notes: on unusual layouts.
    """

    frame: pd.DataFrame
    names: list[str] | None
    rate: float | None
    source: str
    unit: str | None
    notes: list[str]


class _Dialect(NamedTuple):
    separator: str
    decimal: str
    quote: str

    def cells(self, line: str) -> list[str]:
        """Splits a line, without the empty cell that a separator at its start adds."""
        if self.separator == r"\s+":
            found = line.split()
        else:
            found = next(csv.reader([line], delimiter=self.separator, quotechar=self.quote, skipinitialspace=True), [])
        found = [cell.strip() for cell in found]
        return found[1:] if self.separator == "|" and found and not found[0] else found

    def is_number(self, cell: str) -> bool:
        form = _POINT if self.decimal == "." else _COMMA
        return cell.lower() in _MISSING or form.fullmatch(cell) is not None

    def row(self, line: str, share: float = 1.0) -> int:
        """Number of columns of a line of numbers, 0 for any other line; the first may be a time or a name.

        Args:
            line: of the table.
            share: of the other columns that must be numbers.
        """
        cells = _trimmed(self.cells(line))
        numbers = cells[1:] if len(cells) > 1 else cells
        return len(cells) if any(numbers) and sum(map(self.is_number, numbers)) >= share * len(numbers) else 0


def read_table(path: Path) -> Table:
    """Reads a table whose rows are samples and whose columns are leads, times or row numbers, or its transpose.

    Raises:
        CorruptRecordError: with what was found, where, and what was expected.
    """
    lines = [(i, line) for i, line in enumerate(_text(path).splitlines(), start=1) if line.strip(' \t,;|"')]
    remarks = [line for _, line in lines if line.lstrip().startswith(_COMMENT)]
    lines = [(i, line) for i, line in lines if not line.lstrip().startswith(_COMMENT) and line.lower()[:4] != "sep="]
    if not lines:
        raise CorruptRecordError("is empty: expected a table of numbers, a column per lead")
    dialect = _dialect([line for _, line in lines])
    width = max(dialect.row(line, _SHARE) for _, line in lines[-_PROBED - 1 :])
    begin = next(i for i, (_, line) in enumerate(lines) if _begins(dialect, line, width))
    if begin + 1 < len(lines) and _counts_up(dialect.cells(lines[begin][1])):
        begin += 1  # a header of column numbers, as pandas writes for an array
    before, body = lines[:begin], lines[begin:]
    if width > 1:  # columns without a single value, if they have a name
        most = max(len(dialect.cells(line)) for _, line in body[-_PROBED:])
        width = max(width, *(min(most, len(_trimmed(dialect.cells(line)))) for _, line in before[-2:]), 0)
    header, units, remarks = _header(dialect, [line for _, line in before], width, remarks)
    frame = _numbers(dialect, body, width)
    notes: list[str] = []
    if len(frame) <= _MOST_LEADS < frame.shape[1]:
        labelled = not pd.api.types.is_numeric_dtype(frame[0])
        names = [str(name) for name in frame[0]] if labelled else None
        frame = frame.iloc[:, 1:] if labelled else frame
        frame, header, units = frame.T.reset_index(drop=True).astype("float64"), names, None
        notes.append("read with a lead per row")
    if header is not None and units is not None:
        header = [
            f"{name} ({unit.strip('()[]{} ')})" if unit else name for name, unit in zip(header, units, strict=True)
        ]
    frame.columns = pd.RangeIndex(frame.shape[1])
    rate, source = _rate(remarks)
    unit = next((match["value"] for line in remarks if (match := _UNIT.search(line))), None)
    return Table(frame, header, rate, source, unit, notes)


def _trimmed(cells: list[str]) -> list[str]:
    """Drops empty cells at the end."""
    return cells[: max((i for i, cell in enumerate(cells, start=1) if cell), default=0)]


def _begins(dialect: _Dialect, line: str, width: int) -> bool:
    if width == 1:
        return dialect.row(line) == 1
    return dialect.row(line, _SHARE) > 0 and len(dialect.cells(line)) >= width


def _text(path: Path) -> str:
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as file:
                content = file.read(_MOST_BYTES + 1)
        except (OSError, EOFError) as error:
            raise CorruptRecordError(f"is not a whole gzip file: {error}") from error
    if len(content) > _MOST_BYTES:
        raise CorruptRecordError(f"holds more than {_MOST_BYTES >> 20} MiB of text; cut out a part")
    if content[:4] in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
        raise CorruptRecordError("is not a table of numbers but an archive or a workbook; export it as .csv")
    probe = content[:4096]
    if probe[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings = ["utf-16"]
    elif b"\0" in probe:
        encodings = ["utf-16-le" if probe[1::2].count(0) >= probe[::2].count(0) else "utf-16-be"]
    else:
        encodings = ["utf-8-sig", "cp1252", "latin-1"]
    for encoding in encodings:
        try:
            return content.decode(encoding).replace("\u2212", "-").replace("\xa0", " ").replace("\ufeff", "")
        except UnicodeDecodeError:
            continue
    raise CorruptRecordError("is not a table of numbers: its bytes are no text")


def _dialect(lines: Sequence[str]) -> _Dialect:
    """Finds the dialect from the last lines, below any header, except the very last, which may be truncated."""
    probed = lines[-_PROBED - 1 : -1] or lines
    probed = probed if len(lines) > 3 else lines[-1:]
    quote = "'" if any(line.lstrip().startswith("'") for line in lines[:_PROBED]) else '"'
    for share in (1.0, _SHARE):
        for separator, decimal in itertools.product(_SEPARATORS, ".,"):
            dialect = _Dialect(separator, decimal, quote)
            widths = [dialect.row(line, share) for line in probed]
            if min(widths) > 1 and min(len(dialect.cells(line)) for line in probed) >= max(widths):
                _check_commas(dialect, probed)
                return dialect
    for decimal in ".,":
        dialect = _Dialect(";", decimal, quote)
        if all(dialect.row(line) == 1 and dialect.is_number(dialect.cells(line)[0]) for line in probed):
            return dialect
    raise CorruptRecordError(
        f"is not a table of numbers: its last lines, such as {probed[-1].strip()[:60]!r}, are not numbers between "
        "commas, semicolons, tabs, bars or blanks"
    )


def _check_commas(dialect: _Dialect, lines: Sequence[str]) -> None:
    """Refuses numbers such as 1,234, which may be 1.234 or 1234."""
    cells = [cell for line in lines for cell in dialect.cells(line)[1:] if "," in cell]
    if dialect.decimal == "." and cells and not any("." in cell for cell in cells):
        raise CorruptRecordError(
            f"has numbers such as {cells[0]}, which can be one or a thousand; write them with a decimal point, and "
            "without separators of thousands"
        )


def _header(
    dialect: _Dialect, before: Sequence[str], width: int, remarks: Sequence[str]
) -> tuple[list[str] | None, list[str] | None, list[str]]:
    """Names and units of the columns, and the lines above them."""
    rows = [dialect.cells(line) for line in before]
    units = None
    if rows and _are_units(rows[-1]):
        units = _of_width(rows.pop(), width)
    if width == 1 and (stated := next((match["value"] for line in before if (match := _LEAD.search(line))), None)):
        return [stated.strip()], units, [*remarks, *before]
    names = _of_width(rows[-1], width) if rows else None
    if names is not None and (sum(map(bool, names)) > 1 or width == 1):
        return names, units, [*remarks, *before[: len(rows) - 1]]
    known = [name for name in (rows[-1] if rows else []) if read_name(name).lead]
    if len(known) > 1:
        raise CorruptRecordError(
            f"names {len(rows[-1])} columns ({', '.join(rows[-1])}) and has {width} in its rows, read with "
            f"{_SEPARATORS[dialect.separator]} between them; decimal commas need another separator, or quotes"
        )
    return None, units, [*remarks, *before]


def _of_width(cells: list[str], width: int) -> list[str] | None:
    """Cells of a header for rows of `width`; adds the first column's name, which R leaves out."""
    while len(cells) > width and not cells[-1]:
        cells = cells[:-1]
    if len(cells) == width - 1 and width > 2:
        return ["", *cells] if any(read_name(cell).lead for cell in cells) else None
    return cells if len(cells) == width else None


def _are_units(cells: Sequence[str]) -> bool:
    filled = [cell.strip("\"'()[]") for cell in cells if cell]
    return len(filled) > 0 and sum(map(is_unit, filled)) >= max(1, len(filled) - 1) and is_unit(filled[-1])


def _counts_up(cells: Sequence[str]) -> bool:
    """Whether a row is 0, 1, 2, ... or 1, 2, 3, ..., possibly after an empty cell."""
    numbers = [cell.strip("\"'") for cell in cells]
    numbers = numbers[1:] if numbers and not numbers[0] else numbers
    return len(numbers) > 2 and any(numbers == [str(i + first) for i in range(len(numbers))] for first in (0, 1))


def _numbers(dialect: _Dialect, body: Sequence[tuple[int, str]], width: int) -> pd.DataFrame:
    text = io.StringIO("\n".join(line for _, line in body))
    try:
        frame = pd.read_csv(
            text,
            sep=dialect.separator,
            decimal=dialect.decimal,
            thousands="." if dialect.decimal == "," else "," if dialect.separator != "," else None,
            quotechar=dialect.quote,
            header=None,
            skipinitialspace=True,
            na_values=sorted(_MISSING),
            low_memory=False,
        )
    except (ValueError, pd.errors.ParserError) as error:
        _find_fault(dialect, body, width)
        raise CorruptRecordError(f"is not a table of numbers: {error}") from error
    if dialect.separator == "|" and body[0][1].lstrip().startswith("|"):
        frame = frame.iloc[:, 1:]
    # pandas fills up truncated rows.
    if frame.shape[1] < width or frame.iloc[:, width - 1].isna().any():
        _find_fault(dialect, body, width)
    frame = frame.iloc[:, :width].set_axis(range(width), axis=1)
    for column in (frame[i].astype(str) for i in frame if not pd.api.types.is_numeric_dtype(frame[i])):
        wrong = ~column.map(dialect.is_number)
        if 0 < wrong.mean() < 0.5:  # not one of texts
            row = int(wrong.to_numpy().argmax())
            raise CorruptRecordError(
                f"is not a table of numbers: its line {body[row][0]} holds {column[row][:40]!r}; mend the line"
            )
    return frame


def _find_fault(dialect: _Dialect, body: Sequence[tuple[int, str]], width: int) -> None:
    """Names the first line without `width` columns; missing values at its end count as columns."""
    for i, line in body:
        cells = dialect.cells(line)
        if len(cells) < width or any(cells[width:]):
            raise CorruptRecordError(
                f"is not a table of numbers: its line {i} has {len(cells)} columns, the others {width}; mend it"
            )


def _rate(lines: Sequence[str]) -> tuple[float | None, str]:
    for line in lines:
        if match := _RATE.search(line):
            unit = (match["bracket"] or match["unit"] or "").lower()
            try:
                value = float(match["value"].lower().removesuffix("hz").replace(",", "."))
            except ValueError as error:
                raise CorruptRecordError(f"says {line.strip()!r}, which is not a sampling rate in Hz") from error
            if re.search("interval|period", match[1], re.IGNORECASE):
                value = {"ms": 1000.0, "us": 1e6}.get(unit, 1.0) / value if value else 0.0
            return (value * 1000 if unit == "khz" else value), f"its line {line.strip()[:60]!r}"
    return None, ""
