"""Names of leads and units in files: `Lead I`, `I (mV)`, `ECG_V1`, `aVR`, `-aVR`, `MLII`, `DII`, `µV`."""

import re
import unicodedata
from typing import NamedTuple

from datamodules.ptbxl.record import LEADS

_UNITS = {
    "nv": 1e-6, "nanovolt": 1e-6, "nanovolts": 1e-6,
    "uv": 1e-3, "microvolt": 1e-3, "microvolts": 1e-3,
    "mv": 1.0, "millivolt": 1.0, "millivolts": 1.0,
    "v": 1e3, "volt": 1e3, "volts": 1e3,
}  # fmt: skip
# Units of samples that need a gain, which no table has, to become voltages.
_COUNTS = {"adc", "adu", "count", "counts", "digit", "digits", "lsb", "nu", "raw", "arb", "au", "a.u."}
# Other units, without a known factor: `kV`, `10 uV`, `uV/bit`, `pT`; but no other text in brackets, such as `(left)`.
_OTHER = re.compile(r"(\d[\d.,]*\s*[*x]?\s*)?([afpnumcdkM]?V|volts?)(\s*/\s*\w+)?|[fpnum]T|[kM]?Ohm|mmHg|bpm")
_BRACKETED = re.compile(r"(?P<name>.*?)\s*[(\[{](?P<unit>[^()\[\]{}]*)[)\]}]\s*")
_AFTER_SLASH = re.compile(r"(?P<name>.+?)\s*[/,]\s*(?P<unit>[a-z.]+)", re.IGNORECASE)
_AT_END = re.compile(r"(?P<name>.+?)[\s_.\-](?P<unit>[mun]V|(?:milli|micro|nano)?volts?|counts|adu|adc)", re.IGNORECASE)
_PREFIX = re.compile(
    r"^(?:mdc[\s_]?ecg[\s_]?lead|(?:(?:12[\s_-]?)?lead|ecg|ekg|channel|chan|ch|signal|ableitung|deriv\w*)(?![a-z]{3}))"
    r"[\s_.:\-]*(?=\S)",
    re.IGNORECASE,
)
_DEVICE = {"DI": "I", "DII": "II", "DIII": "III", "D1": "I", "D2": "II", "D3": "III"}
_MODIFIED = {"MLI": "I", "MLII": "II", "MLIII": "III"}  # limb leads whose electrodes lie on the torso, as in MIT-BIH


class ColumnName(NamedTuple):
    """Interpretation of a column's name.

    Attributes:
        lead: one of `LEADS`, or None.
        unit: as written, or None.
        sign: -1 for a lead that was recorded upside down, `-aVR`.
        modified: whether it is a lead with other electrodes, which is read as `lead`.
    """

    lead: str | None
    unit: str | None
    sign: int
    modified: bool


def millivolts(unit: str) -> float | None:
    """Number of mV in one of a unit, or None for a unit that is no voltage."""
    return _UNITS.get(_plain(unit).lower().rstrip("."))


def is_unit(text: str) -> bool:
    """Whether a cell of a table is nothing but a unit of samples."""
    plain = _plain(text)
    return millivolts(plain) is not None or plain.lower() in _COUNTS or _OTHER.fullmatch(plain) is not None


def read_name(text: str) -> ColumnName:
    """Reads lead and unit from a column's name."""
    name, unit = _plain(text), None
    for form in (_BRACKETED, _AFTER_SLASH, _AT_END):
        if (match := form.fullmatch(name)) and (form is _BRACKETED or is_unit(match["unit"])):
            name, unit = match["name"] or name, match["unit"] if is_unit(match["unit"]) else None
            break
    lead, sign, modified = _lead(name)
    return ColumnName(lead, unit, sign, modified)


def _plain(text: str) -> str:
    """Normalises compatibility forms (roman numerals, micro signs), and strips quotes and blanks."""
    plain = unicodedata.normalize("NFKC", text).replace("\u03bc", "u").replace("\u2212", "-")
    return plain.strip().strip("\"'`").strip()


def _lead(name: str) -> tuple[str | None, int, bool]:
    sign = -1 if re.match(r"\(?-\)?\s*a", name, re.IGNORECASE) else 1
    while (shorter := _PREFIX.sub("", name)) != name:
        name = shorter
    bare = re.sub(r"[\s_.:\-()]", "", name).upper().removesuffix("LEAD")
    if bare in _MODIFIED:
        return _MODIFIED[bare], sign, True
    bare = _DEVICE.get(bare, bare)
    return (bare if bare in LEADS else None), sign, False
