"""Sampling rates: which are possible, and which one a column of times or row numbers implies."""

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from datamodules.ptbxl.wfdb_record import CorruptRecordError

# Wearables store 32 Hz and more, electrophysiology up to 50 kHz.
SLOWEST, FASTEST = 25.0, 100_000.0
_USUAL = (50.0, 5000.0)  # of ECGs; spans less than a factor of 1000, so that at most one unit of time fits
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_FEWEST = 10  # samples, of a column that is judged by its values
_AGREE = 2e-3  # relative: between two statements of one rate
_TIME = re.compile(
    r"(elapsed|relative|absolute|local|utc|rec\w*|ecg)?[\s_\-]*(time|timestamps?|t|date|datetime|zeit|tiempo|temps|tempo|"
    r"clock|elapsed)([\s_\-]*(stamp|axis|vector|index|utc|local))?"
)
_UNIT = {
    **dict.fromkeys(["s", "sec", "secs", "second", "seconds"], "s"),
    **dict.fromkeys(["ms", "msec", "msecs", "millis", "millisecond", "milliseconds"], "ms"),
    **dict.fromkeys(["us", "usec", "usecs", "micros", "microsecond", "microseconds"], "us"),
    **dict.fromkeys(["ns", "nsec", "nanos", "nanosecond", "nanoseconds"], "ns"),
}
_ROWS = re.compile(
    r"(unnamed[:_ ]*0|index|idx|samples?([\s_\-]*(no|nr|number|num|index|idx|#))?|n|no\.?|nr\.?|#|rows?(names)?|"
    r"frames?|counter|id|level_0|row[\s_\-]*(no|nr|number|index|id))"
)


class Axis(NamedTuple):
    """Column that is no lead: its meaning, and its rate in Hz, None for row numbers or times too coarse for one."""

    rate: float | None
    meaning: str


def checked_rate(rate: float | None, source: str = "") -> float:
    """Checks that a sampling rate is possible for an ECG, and returns it.

    Args:
        rate: Hz, or None if there is none.
        source: of the rate, unless it is the option.

    Raises:
        CorruptRecordError: there is none, or it is a period or in another unit.
    """
    if rate is not None and SLOWEST <= rate <= FASTEST:
        return float(rate)
    got = f"{rate:g}" if rate is not None else "None"
    said = f"needs a sampling rate in Hz, got {got}{f' from {source}' if source else ''}"
    if rate is None:
        raise CorruptRecordError(f"{said}; give it: --sampling_rate 500")
    meant = [
        f"{value:g} Hz if it is {what}"
        for what, value in (
            ("a period in seconds", 1 / rate if rate else 0.0),
            ("a period in ms", 1000 / rate if rate else 0.0),
            ("in kHz", 1000 * rate),
        )
        if _USUAL[0] <= value <= _USUAL[1]
    ]
    also = f" ({got} is {', '.join(meant)})" if meant else ""
    raise CorruptRecordError(
        f"{said}; it must be a rate in Hz, not a period, of {SLOWEST:g} to {FASTEST:g}{also}: --sampling_rate 500"
    )


def one_rate(given: float | None, found: float | None, source: str) -> float:
    """Returns the given rate, or else the file's, of `source`; checks that both agree.

    Raises:
        CorruptRecordError: they differ, there is none, or it is impossible for an ECG.
    """
    if given is None:
        return checked_rate(found, source if found is not None else "")
    given = checked_rate(given)
    if found is not None and abs(found - given) > _AGREE * given:
        raise CorruptRecordError(
            f"is sampled at {found:g} Hz by {source}, and --sampling_rate says {given:g}; leave the option out, or "
            "mend the file"
        )
    return given


def read_axis(name: str | None, values: "pd.Series[float]") -> Axis | None:
    """Interprets a column of times or row numbers; returns None for any other column.

    It is recognised by its name, or by its values: no ECG rises in equal steps.

    Args:
        name: of the column, if it has one; not that of a lead.
        values: numbers or texts.

    Raises:
        CorruptRecordError: the steps of a column of times are unequal.
    """
    words = (name or "").strip().strip("\"'").lower()
    unit, bare = _unit(words)
    named = _TIME.fullmatch(bare) is not None or bare in _UNIT
    called = f"its column {name.strip()!r}" if name and name.strip() else "its column of times"
    seconds: npt.NDArray[np.generic] = values.to_numpy()
    if not pd.api.types.is_numeric_dtype(values):
        clock = _clock(values)
        if clock is None:
            return None
        seconds, unit, named = clock, "s", True
    elif not np.isfinite(seconds.astype(np.float64)).all():
        return None
    rows = _ROWS.fullmatch(bare) is not None
    if len(seconds) < _FEWEST:
        return Axis(None, "times" if named else "row numbers") if named or rows else None
    # Integers of nanoseconds need the subtraction first.
    elapsed: npt.NDArray[np.float64] = np.subtract(seconds, seconds[0]).astype(np.float64)
    step = elapsed[-1] / (len(elapsed) - 1)
    if not _steady(elapsed, step):
        if named:
            raise CorruptRecordError(_uneven(called, elapsed))
        return Axis(None, "row numbers") if rows else None
    counted = rows and not bare.startswith(("unnamed", "index", "idx", "level"))  # those may be times as well
    if unit is None and (step == 1 or counted):
        return Axis(None, "a count of 1 per sample" if named else "row numbers")  # of samples, or of milliseconds
    return _rate(elapsed, step, unit, called)


def _rate(elapsed: npt.NDArray[np.float64], step: float, unit: str | None, called: str) -> Axis:
    units = [unit] if unit else [u for u, s in _SECONDS.items() if _USUAL[0] <= 1 / (step * s) <= _USUAL[1]]
    if not units:
        return Axis(None, f"steps of {step:g}")
    seconds = _SECONDS[units[0]]
    rate = 1 / (step * seconds)
    steps = np.diff(elapsed)
    resolution = steps[steps > 0].min()
    if resolution > 1.5 * step and resolution > 0.5 * _AGREE * elapsed[-1]:
        return Axis(None, f"times to {resolution * seconds:g} s")
    # To the nearest integer, if that is off by less than one sample over the whole recording.
    rate = float(round(rate)) if abs(rate - round(rate)) * elapsed[-1] * seconds < 1 else rate
    return Axis(checked_rate(rate, called), f"times in {units[0]}")


def _unit(words: str) -> tuple[str | None, str]:
    """Splits a name into unit of time and rest: `time_ms`, `t [s]`, `Elapsed time (us)`, `seconds`."""
    words = words.replace("\u00b5", "u").replace("\u03bc", "u")
    if words in _UNIT:
        return _UNIT[words], words
    match = re.fullmatch(r"(.*?)[\s_\-/,.]*[(\[]?(?<![a-z])([a-z]+)[)\]]?", words)
    if match and match[2] in _UNIT and match[1]:
        return _UNIT[match[2]], match[1].strip(" _-/,.")
    bracketed = re.fullmatch(r"(.*?)\s*[(\[].*[)\]]", words)
    return None, bracketed[1] if bracketed else words


def _steady(elapsed: npt.NDArray[np.float64], step: float) -> bool:
    """Whether times advance in equal steps, up to the rounding of their text."""
    steps = np.diff(elapsed)
    if step <= 0 or (steps < 0).any():
        return False
    off = np.abs(elapsed - step * np.arange(len(elapsed))).max()
    return bool(off <= max(0.5 * step, steps[steps > 0].min()) * 1.01)


def _uneven(called: str, elapsed: npt.NDArray[np.float64]) -> str:
    steps = np.diff(elapsed)
    row = int(np.argmin(steps)) if (steps < 0).any() else int(np.argmax(steps))
    return (
        f"has unequal times: {called} goes on in steps of {np.median(steps):g}, and by {steps[row]:g} after sample "
        f"{row + 1}; give an evenly sampled recording, or remove the column"
    )


def _clock(values: "pd.Series[float]") -> npt.NDArray[np.float64] | None:
    """Converts texts to seconds: 0:00.002, 12:30:00.002, 2024-01-31T12:30:00.002, [12:30:00.000 31/01/2024]."""
    texts = values.astype(str).str.strip().str.strip("\"'[]")
    first = texts.iloc[0]
    try:
        if re.fullmatch(r"\d+:\d{1,2}([.,]\d+)?", first):
            texts = "00:" + texts
        if re.fullmatch(r"\d+:\d{1,2}([.,]\d+)?|\d+:\d\d:\d\d([.,]\d+)?", first):
            return pd.to_timedelta(texts.str.replace(",", ".")).dt.total_seconds().to_numpy().astype(np.float64)
        if re.match(r"\d{4}-\d\d-\d\d", first):
            moments = pd.to_datetime(texts.str.replace(",", "."), format="ISO8601")
        elif re.search(r"\d:\d\d", first):
            moments = pd.to_datetime(texts, format="mixed", dayfirst=True)
        else:
            return None
        return (moments - moments.iloc[0]).dt.total_seconds().to_numpy().astype(np.float64)
    except (ValueError, TypeError, OverflowError):  # texts of another kind
        return None
