"""What a reader of any format returns, and what the formats have in common."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from datamodules.ptbxl.errors import CorruptRecordError
from datamodules.ptbxl.leads import LEADS, read_name

Floats = npt.NDArray[np.float64]

_SLOWEST, _FASTEST = 25.0, 100_000.0  # Hz; wearables store 32 and more, electrophysiology up to 50,000
_YEARS = {"year": 1.0, "month": 1 / 12, "week": 7 / 365.25, "day": 1 / 365.25}
_LETTERS = {"Y": "year", "M": "month", "W": "week", "D": "day"}


class Channel(NamedTuple):
    """One signal of a file.

    Attributes:
        name: as in the file, or as given by the user; "" for none.
        samples: (L,) in `unit`, NaN for missing ones.
        rate: Hz, or None.
        unit: as in the file, or None.
    """

    name: str
    samples: Floats
    rate: float | None
    unit: str | None


class Contents(NamedTuple):
    """Contents of a file.

    Attributes:
        channels: its signals.
        binding: whether the format has fields for rates, units and names, which options must not contradict.
        age: in years, or None.
        sex: "female" or "male", or None.
        notes: what the user should know.
    """

    channels: list[Channel]
    binding: bool
    age: float | None
    sex: str | None
    notes: list[str]


def checked_rate(rate: float, source: str) -> float:
    """Returns a sampling rate that is possible for an ECG.

    Raises:
        CorruptRecordError: it is not.
    """
    if not _SLOWEST <= rate <= _FASTEST:
        raise CorruptRecordError(
            f"is sampled at {rate:g} Hz by {source}, expected a rate in Hz, not a period, of {_SLOWEST:g} to "
            f"{_FASTEST:g}; give the right one: --sampling_rate 500"
        )
    return float(rate)


def names_of(written: Sequence[str], given: Sequence[str] | None) -> list[str]:
    """Names of the channels: the user's, or else the file's.

    Raises:
        CorruptRecordError: there are more or fewer channels than given names, or no name is that of a lead.
    """
    if given is not None and len(given) != len(written):
        raise CorruptRecordError(
            f"has {len(written)} columns, and --leads names {len(given)}; name each column that is no time, and those "
            "to leave out x"
        )
    names = list(written if given is None else given)
    if not any(read_name(name) for name in names):
        listed = ", ".join(repr(name) for name in names[:15])
        raise CorruptRecordError(
            f"has no lead among the names of its {len(names)} columns ({listed}), expected {', '.join(LEADS)}; name "
            "the columns in their order, and those to leave out x: --leads I,II,.."
        )
    return names


def years(text: str) -> float | None:
    """Reads an age such as `63`, `63 years`, `18 months`, `3 weeks`, `10 days` or `P12Y`; None for any other text."""
    text = text.strip()
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)(?: ?(year|month|week|day)s?)?", text, re.IGNORECASE):
        return float(match[1]) * _YEARS[(match[2] or "year").lower()]
    if match := re.fullmatch(r"P(\d+(?:\.\d+)?)([YMWD])", text):
        return float(match[1]) * _YEARS[_LETTERS[match[2]]]
    return None


def sex_of(text: str) -> str | None:
    """Reads `F`, `female`, `M` or `male` in any case; None for any other text."""
    return {"f": "female", "female": "female", "m": "male", "male": "male"}.get(text.strip().lower())
