"""European Data Format, EDF, EDF+ and BDF, through the edfio package."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.ptbxl.errors import CorruptRecordError
from datamodules.ptbxl.readers.contents import Channel, Contents, names_of, sex_of
from msssm.errors import InputError


def read_edf(path: Path, given_leads: Sequence[str] | None) -> Contents:
    """Reads the signals of a file; rates, units, age and sex are from its header.

    Raises:
        CorruptRecordError: it is damaged or has gaps.
        InputError: edfio is not installed.
    """
    try:
        import edfio
    except ModuleNotFoundError as error:
        raise InputError(f"asked for {path}, got no edfio to read it: pip install 'msssm[clinical]'") from error
    try:
        with warnings.catch_warnings(record=True) as said:  # that a file is shorter than its header says
            file: Any = edfio.read_bdf(path) if path.suffix.lower() == ".bdf" else edfio.read_edf(path)
            signals = [(signal, signal.data.astype(np.float64)) for signal in file.signals]
    except (ValueError, IndexError, KeyError, EOFError, TypeError) as error:  # of a damaged header
        raise CorruptRecordError(f"is not an EDF file: {error}") from error
    if not file.is_continuous:
        raise CorruptRecordError("has gaps (EDF+D); cut it into files without gaps")
    names = names_of([signal.label for signal, _ in signals], given_leads)
    channels = [
        Channel(name, data, float(signal.sampling_frequency), signal.physical_dimension or None)
        for name, (signal, data) in zip(names, signals, strict=True)
    ]
    try:
        age = (file.startdate - file.patient.birthdate).days / 365.25
    except (ValueError, TypeError, edfio.AnonymizedDateError):  # one of them is not given
        age = None
    return Contents(channels, True, age, sex_of(file.patient.sex), [str(warning.message) for warning in said])
