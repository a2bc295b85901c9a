"""PTB-XL's code table, reconstructed for generated data; real data comes with its own scp_statements.csv.

Codes, groups, classes and subclasses follow the table published with PTB-XL (Wagner et al. 2020, PhysioNet, CC BY 4.0).
The columns that cross-reference other coding systems are left empty.
"""

from collections.abc import Collection

import pandas as pd

_DIAGNOSTIC = {
    "NORM": {"NORM": "NORM"},
    "CD": {
        "LAFB/LPFB": "LAFB LPFB",
        "IRBBB": "IRBBB",
        "_AVB": "1AVB 2AVB 3AVB",
        "IVCD": "IVCD",
        "CRBBB": "CRBBB",
        "CLBBB": "CLBBB",
        "WPW": "WPW",
        "ILBBB": "ILBBB",
    },
    "HYP": {"LVH": "LVH", "LAO/LAE": "LAO/LAE", "RVH": "RVH", "RAO/RAE": "RAO/RAE", "SEHYP": "SEHYP"},
    "MI": {
        "IMI": "IMI ILMI IPLMI IPMI INJIN INJIL",
        "AMI": "ASMI AMI ALMI INJAS INJAL INJLA",
        "LMI": "LMI",
        "PMI": "PMI",
    },
    "STTC": {
        "STTC": "NDT DIG LNGQT ANEUR EL",
        "NST_": "NST_",
        "ISC_": "ISC_",
        "ISCA": "ISCAL ISCAS ISCLA ISCAN",
        "ISCI": "ISCIN ISCIL",
    },
}
_ALSO_FORM = "NDT NST_ DIG LNGQT"
_FORM = "ABQRS PVC STD_ VCLVH QWAVE LOWT NT_ PAC LPR INVT LVOLT HVOLT TAB_ STE_ PRC(S)"
_RHYTHM = "SR AFIB STACH SARRH SBRAD PACE SVARR BIGU AFLT SVTAC PSVT TRIGU"
_DESCRIPTIONS = {
    "NORM": "normal ECG",
    "1AVB": "first degree AV block",
    "CLBBB": "complete left bundle branch block",
    "CRBBB": "complete right bundle branch block",
    "LVH": "left ventricular hypertrophy",
    "IMI": "inferior myocardial infarction",
    "ASMI": "anteroseptal myocardial infarction",
    "ISC_": "non-specific ischemic",
    "NDT": "non-diagnostic T abnormalities",
    "LNGQT": "long QT-interval",
    "SR": "sinus rhythm",
    "SBRAD": "sinus bradycardia",
    "STACH": "sinus tachycardia",
    "SARRH": "sinus arrhythmia",
    "AFIB": "atrial fibrillation",
    "BIGU": "bigeminal pattern (unknown origin, SV or Ventricular)",
}
# Pairs that exclude each other by what they mean. Of pairs that chance alone would bring together 15 times or more,
# PTB-XL has 5 records (of 56 expected) with SR and AFLT, and 0 to 3 of each of the others.
_EXCLUSIVE = {
    "NORM": "CLBBB CRBBB ILBBB WPW IMI ILMI IPLMI IPMI ASMI AMI ALMI LMI PMI INJAS INJAL INJIN INJIL INJLA LVH RVH "
    "SEHYP ISC_ ISCAL ISCAS ISCLA ISCAN ISCIN ISCIL NDT DIG LNGQT ANEUR AFLT PACE",
    "SR": "SBRAD STACH AFIB AFLT SARRH SVARR SVTAC PSVT PACE",
    "AFIB": "SBRAD STACH SARRH",
    "SBRAD": "STACH",
    "STACH": "SARRH",
    "CLBBB": "CRBBB IRBBB ILBBB LAFB",
    "CRBBB": "ILBBB",
}
# What the rhythm and the conduction from the atria say can be read off any lead; all else needs the twelve.
_OF_ANY_LEAD = frozenset(f"{_RHYTHM} 1AVB 2AVB 3AVB LPR PVC PAC".split())
_COLUMNS = (
    "description",
    "diagnostic",
    "form",
    "rhythm",
    "diagnostic_class",
    "diagnostic_subclass",
    "Statement Category",
    "SCP-ECG Statement Description",
    "AHA code",
    "aECG REFID",
    "CDISC Code",
    "DICOM Code",
)


def conflicts(found: Collection[str]) -> list[tuple[str, str]]:
    """Pairs among some statements that exclude each other."""
    pairs = ((one, other) for one, others in _EXCLUSIVE.items() for other in others.split())
    return [(one, other) for one, other in pairs if one in found and other in found]


def needs_all_leads(code: str) -> bool:
    """Whether a statement cannot be made when leads are missing."""
    return code not in _OF_ANY_LEAD


def scp_statements() -> pd.DataFrame:
    """The 71 rows of scp_statements.csv, indexed by code, with 1 or NaN in diagnostic, form and rhythm."""
    rows: dict[str, dict[str, str | float]] = {}
    for superclass, subclasses in _DIAGNOSTIC.items():
        for subclass, codes in subclasses.items():
            for code in codes.split():
                rows[code] = {"diagnostic": 1.0, "diagnostic_class": superclass, "diagnostic_subclass": subclass}
    for code in (_ALSO_FORM + " " + _FORM).split():
        rows.setdefault(code, {})["form"] = 1.0
    for code in _RHYTHM.split():
        rows[code] = {"rhythm": 1.0}
    for code, row in rows.items():
        row["description"] = _DESCRIPTIONS.get(code, code)
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(_COLUMNS))
