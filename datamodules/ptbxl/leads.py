"""The twelve leads, and how files spell their names and units."""

import re
from typing import NamedTuple

from datamodules.ptbxl.errors import CorruptRecordError

LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
# Einthoven 1895 and Goldberger 1942: four limb leads are sums of I and II, with these factors.
DERIVED = {"III": (-1.0, 1.0), "AVR": (-0.5, -0.5), "AVL": (1.0, -0.5), "AVF": (-0.5, 1.0)}

_MILLIVOLTS = {
    **dict.fromkeys(("nv", "nanovolt", "nanovolts"), 1e-6),
    **dict.fromkeys(("uv", "\u00b5v", "\u03bcv", "microvolt", "microvolts"), 1e-3),
    **dict.fromkeys(("mv", "millivolt", "millivolts"), 1.0),
    **dict.fromkeys(("v", "volt", "volts"), 1e3),
}
_MODIFIED = {"MLI": "I", "MLII": "II", "MLIII": "III"}  # their electrodes lie on the torso, as in MIT-BIH
_SPELLINGS = {**{lead: lead for lead in LEADS}, "DI": "I", "DII": "II", "DIII": "III", **_MODIFIED}
_NAME = re.compile(
    rf"(?P<sign>-?)(?:(?:lead|ecg)[ _]|mdc_ecg_lead_)?(?P<lead>{'|'.join(_SPELLINGS)})"
    r"(?:[ _]?[(\[](?P<bracketed>[^()\[\]]+)[)\]]|[ _](?P<unit>[nu\u00b5\u03bcm]?v))?",
    re.IGNORECASE,
)


class LeadName(NamedTuple):
    """Interpretation of a column's name.

    Attributes:
        lead: one of `LEADS`.
        sign: -1 for a lead that was recorded upside down, such as `-aVR`.
        unit: as written, or None.
        modified: whether the electrodes were elsewhere, as of MLII.
    """

    lead: str
    sign: int
    unit: str | None
    modified: bool


def read_name(text: str) -> LeadName | None:
    """Reads `aVR`, `Lead II`, `ECG_V1`, `V1 (mV)`, `I_uV`, `DII`, `MLII` or `-aVR`, in any case; None for any other."""
    match = _NAME.fullmatch(text.strip().strip("\"'").strip())
    if match is None:
        return None
    written = match["lead"].upper()
    unit = match["bracketed"] or match["unit"]
    return LeadName(_SPELLINGS[written], -1 if match["sign"] else 1, unit, written in _MODIFIED)


def is_unit(text: str) -> bool:
    """Whether a text is a unit of voltage."""
    return text.strip().lower() in _MILLIVOLTS


def millivolts(unit: str) -> float:
    """Number of mV in one of a unit.

    Raises:
        CorruptRecordError: it is no unit of voltage.
    """
    if not is_unit(unit):
        raise CorruptRecordError(f"is in {unit}, expected mV, uV, nV or V; convert it, or name its unit: --unit uV")
    return _MILLIVOLTS[unit.strip().lower()]
