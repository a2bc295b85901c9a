"""EDF, BDF and DICOM: the signal, rates, units, leads, age and sex are those of the format's own fields."""

import datetime
from pathlib import Path
from typing import Any

import edfio
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, TwelveLeadECGWaveformStorage

from datamodules.ptbxl import LEADS, find_recordings, read_recording, simulate
from msssm.errors import InputError
from tests.support.tolerances import allowed

MILLIVOLTS = simulate("SR", 0, np.random.default_rng(0), 500) / 1000
CODES = [1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8]


def edf(path: Path, **changed: Any) -> Path:
    """The leads in microvolts, as `ECG V1`, and a channel of breathing at another rate."""
    kind, signal = (edfio.Bdf, edfio.BdfSignal) if path.suffix == ".bdf" else (edfio.Edf, edfio.EdfSignal)
    unit, factor = changed.get("unit", ("uV", 1000))
    signals = [
        signal(factor * MILLIVOLTS[:, i], 500, label=f"ECG {LEADS[i]}", physical_dimension=unit) for i in range(12)
    ]
    signals.append(signal(np.sin(np.arange(100)), 10, label="Resp", physical_dimension="l"))
    patient = edfio.Patient(sex="F", birthdate=datetime.date(1960, 1, 1))
    recording = edfio.Recording(startdate=datetime.date(2021, 1, 1))
    kind(signals, patient=patient, recording=recording).write(path)
    return path


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def dicom(path: Path, *, scheme: str = "SCPECG", unit: str = "uV", sequence: bool = True) -> Path:
    """12-lead ECG storage: 10 s, and median beats of 1 s."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = TwelveLeadECGWaveformStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
    file.PatientAge, file.PatientSex = "063Y", "M"
    groups = []
    for samples in (MILLIVOLTS[:500], MILLIVOLTS):
        group = Dataset()
        group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = 12, len(samples)
        group.SamplingFrequency, group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 500, 16, "SS"
        group.ChannelDefinitionSequence = []
        for number, lead in zip(CODES, LEADS, strict=True):
            channel = Dataset()
            value = f"5.6.3-9-{number}" if scheme == "SCPECG" else f"2:{number}"
            channel.ChannelSourceSequence = [code(value, scheme, f"Lead {lead} (Einthoven)")]
            channel.ChannelSensitivity = "2.0" if unit == "uV" else "0.002"
            channel.ChannelSensitivityUnitsSequence = [code(unit, "UCUM", unit)]
            channel.ChannelSensitivityCorrectionFactor, channel.ChannelBaseline = "1", "0"
            channel.WaveformBitsStored = 16
            group.ChannelDefinitionSequence.append(channel)
        group.WaveformData = np.rint(samples * 500).astype("<i2").tobytes()
        groups.append(group)
    if sequence:
        file.WaveformSequence = groups
    file.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("name", ["a.edf", "a.bdf", "A.EDF"])
@pytest.mark.parametrize("unit", [("uV", 1000), ("mV", 1)])
def test_edf_is_the_signal_that_was_written(tmp_path: Path, name: str, unit: tuple[str, int]) -> None:
    path = edf(tmp_path / name.lower(), unit=unit).rename(tmp_path / name)
    assert find_recordings(tmp_path) == [path]
    recording = read_recording(path, 500)
    step = 1.01 * np.ptp(MILLIVOLTS, axis=0).max() / 2**16 + 1e-3
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=allowed(float(step), "16 bits and 1 uV"))
    assert (recording.original_rate, recording.sex, round(recording.age or 0)) == (500, "female", 61)
    assert recording.notes == ["not used: Resp"]


@pytest.mark.parametrize("scheme", ["SCPECG", "MDC"])
@pytest.mark.parametrize("unit", ["uV", "mV"])
def test_dicom_is_the_longest_waveform(tmp_path: Path, scheme: str, unit: str) -> None:
    recording = read_recording(dicom(tmp_path / "a.dcm", scheme=scheme, unit=unit), 500)
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=allowed(1.01e-3, "steps of 2 uV"))
    assert (recording.age, recording.sex, recording.original_rate) == (63, "male", 500)
    assert recording.notes == ["1 shorter waveforms left out"]


def test_an_option_does_not_contradict_the_header(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is sampled at 500 Hz by its header, and --sampling_rate says 250"):
        read_recording(edf(tmp_path / "a.edf"), 100, given_rate=250)
    with pytest.raises(InputError, match="is in uV by its header, and --unit says mV"):
        read_recording(dicom(tmp_path / "a.dcm"), 100, given_unit="mV")


def test_a_bad_file_is_named_with_its_fault(tmp_path: Path) -> None:
    for name in ("a.edf", "a.bdf", "a.dcm"):
        (tmp_path / name).write_bytes(b"rubbish" * 100)
        with pytest.raises(InputError, match=f"{name} is not a"):
            read_recording(tmp_path / name, 100)
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError, match=f"{name} is not a"):
            read_recording(tmp_path / name, 100)
    with pytest.raises(InputError, match="has no waveform; give an ECG, not its picture"):
        read_recording(dicom(tmp_path / "c.dcm", sequence=False), 100)


def test_a_file_that_ends_early_is_answered_with_a_note(tmp_path: Path) -> None:
    path = edf(tmp_path / "b.edf")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    recording = read_recording(path, 500)
    assert 4 <= len(recording.signal) / 500 < 5
    assert any("EDF header" in note for note in recording.notes)


@pytest.mark.parametrize(("name", "package"), [("a.edf", "edfio"), ("a.dcm", "pydicom")])
def test_a_missing_package_is_named(tmp_path: Path, name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).touch()
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(InputError, match=rf"got no {package} to read it: pip install 'msssm\[clinical\]'"):
        read_recording(tmp_path / name, 100)
