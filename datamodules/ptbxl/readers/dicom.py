"""DICOM waveforms, through the pydicom package: 12-lead ECG, general ECG and ambulatory ECG storage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.ptbxl.errors import CorruptRecordError
from datamodules.ptbxl.readers.contents import Channel, Contents, names_of, sex_of, years
from msssm.errors import InputError

# The last number of a lead's code, of SCP-ECG (5.6.3-9-1) as of MDC (2:1).
_LEADS = {"1": "I", "2": "II", "61": "III", "62": "AVR", "63": "AVL", "64": "AVF"} | {
    str(2 + number): f"V{number}" for number in range(1, 7)
}


def read_dicom(path: Path, given_leads: Sequence[str] | None) -> Contents:
    """Reads the longest of a file's waveforms, of which the others are median beats; leads by their codes.

    Raises:
        CorruptRecordError: it is damaged, or has no waveform.
        InputError: pydicom is not installed.
    """
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
    except ModuleNotFoundError as error:
        raise InputError(f"asked for {path}, got no pydicom to read it: pip install 'msssm[clinical]'") from error
    try:
        file: Any = dcmread(path)
        groups = list(getattr(file, "WaveformSequence", []))
        if not groups:
            raise CorruptRecordError("has no waveform; give an ECG, not its picture")
        longest = max(range(len(groups)), key=lambda index: int(groups[index].NumberOfWaveformSamples))
        samples = np.asarray(file.waveform_array(longest), dtype=np.float64)
        rate = float(groups[longest].SamplingFrequency)
        described = list(groups[longest].ChannelDefinitionSequence)
        names = names_of([_lead(channel) for channel in described], given_leads)
    except (InvalidDicomError, ValueError, AttributeError, KeyError, IndexError, EOFError) as error:
        if isinstance(error, CorruptRecordError):
            raise
        raise CorruptRecordError(f"is not a DICOM waveform: {error}") from error
    channels = [
        Channel(name, column, rate, _unit(channel))
        for name, column, channel in zip(names, samples.T, described, strict=True)
    ]
    age, left = str(getattr(file, "PatientAge", "")), len(groups) - 1
    notes = [f"{left} shorter waveforms left out"] if left else []
    return Contents(channels, True, years(f"P{age.lstrip('0')}"), sex_of(str(getattr(file, "PatientSex", ""))), notes)


def _lead(channel: Any) -> str:
    """Lead of a channel's code, or the code's meaning."""
    source = channel.ChannelSourceSequence[0]
    number = str(source.CodeValue).replace(":", "-").rpartition("-")[2]
    return _LEADS.get(number, str(getattr(source, "CodeMeaning", "")))


def _unit(channel: Any) -> str | None:
    units = getattr(channel, "ChannelSensitivityUnitsSequence", None)
    return str(units[0].CodeValue) if units else None
