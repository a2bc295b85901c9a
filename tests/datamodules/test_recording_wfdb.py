"""WFDB records in the forms that published ones have, written in their on-disk format."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import wfdb

from datamodules.ptbxl import LEADS, Recording, find_recordings, read_recording, simulate
from tests.support.tolerances import FLOAT64, allowed

SIGNAL = simulate("SR", 0, np.random.default_rng(0)).astype(np.int16)
MILLIVOLTS = SIGNAL / 1000
NAMES = tuple(lead.replace("AV", "aV") for lead in LEADS)


def header(path: Path, first: str, files: list[str], signal: npt.NDArray[Any] = SIGNAL, **columns: list[str]) -> Path:
    """`<path>.hea` with checksums; columns: `form`, `gain` and `name` of the signals."""
    count = len(files)
    form, gain = columns.get("form", ["16"] * count), columns.get("gain", ["1000/mV"] * count)
    names = columns.get("name", list(NAMES))
    sums = [int(column.astype(np.int16).sum(dtype=np.int16)) for column in signal.T]
    lines = [
        f"{file} {f} {g} 16 0 0 {c} 0 {n}" for file, f, g, c, n in zip(files, form, gain, sums, names, strict=True)
    ]
    path.with_name(path.name + ".hea").write_text("\n".join([first, *lines, "#Age: 74", "#Dx: 59118001"]) + "\n")
    return path.with_name(path.name + ".hea")


def same(recording: Recording) -> None:
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=FLOAT64)


@pytest.mark.parametrize(
    "first", ["E00001 12 100 1000", "E00001.mat 12 100 1000 05-May-2020 14:50:55", "E1+2.mat.x 12 100 1000"]
)
def test_a_matlab_file_of_the_2020_challenge_is_read(tmp_path: Path, first: str) -> None:
    """24 bytes of a MATLAB 4 header, then the samples; a record name that may carry its extension."""
    (tmp_path / "E00001.mat").write_bytes(bytes(24) + SIGNAL.astype("<i2").tobytes())
    path = header(tmp_path / "E00001", first, ["E00001.mat"] * 12, form=["16+24"] * 12)
    same(read_recording(path, 100))
    assert find_recordings(tmp_path / "E00001.mat") == find_recordings(tmp_path) == [path]


def test_a_damaged_one_is_found(tmp_path: Path) -> None:
    content = bytearray(24) + SIGNAL.astype("<i2").tobytes()
    content[24] ^= 1
    (tmp_path / "E.mat").write_bytes(content)
    with pytest.raises(ValueError, match=r"wrong checksum of lead I$"):
        read_recording(header(tmp_path / "E", "E.mat 12 100 1000", ["E.mat"] * 12, form=["16+24"] * 12), 100)


def test_several_samples_per_frame_have_their_own_rate_and_checksum(tmp_path: Path) -> None:
    frames = SIGNAL.reshape(250, 4, 12).transpose(0, 2, 1).reshape(250, 48)
    other = np.arange(250, dtype=np.int16)[:, None]
    (tmp_path / "r.dat").write_bytes(np.hstack([frames, other]).astype("<i2").tobytes())
    sums = np.zeros((1000, 13), np.int16)
    sums[:, :12] = SIGNAL
    sums[:250, 12:] = other
    path = header(
        tmp_path / "r", "r 13 25 250", ["r.dat"] * 13, sums,
        form=["16x4"] * 12 + ["16"], gain=["1000/mV"] * 12 + ["1/mmHg"], name=[*NAMES, "ABP"],
    )  # fmt: skip
    recording = read_recording(path, 100)
    same(recording)
    assert (recording.original_rate, recording.notes, recording.age) == (100, ["not used: ABP"], 74)


def test_leads_of_unequal_rates_are_brought_to_the_fastest(tmp_path: Path) -> None:
    time = np.arange(2000) / 200
    fast = np.rint(1000 * np.sin(2 * np.pi * 3 * time)[:, None] * np.linspace(0.5, 1, 12)).astype(np.int16)
    frames = np.hstack([fast[::2, :1], fast[:, 1:].reshape(1000, 2, 11).transpose(0, 2, 1).reshape(1000, 22)])
    (tmp_path / "r.dat").write_bytes(frames.astype("<i2").tobytes())
    sums = fast.copy()
    sums[1::2, 0] = 0
    path = header(tmp_path / "r", "r 12 100 1000", ["r.dat"] * 12, sums, form=["16", *["16x2"] * 11])
    recording = read_recording(path, 200)
    np.testing.assert_allclose(
        recording.signal[100:-100], fast[100:-100] / 1000, rtol=0, atol=allowed(0.003, "the filter that resamples")
    )
    assert recording.notes == ["resampled from 100 to 200 Hz"]


def test_a_skewed_lead_is_brought_to_its_time(tmp_path: Path) -> None:
    late = SIGNAL.copy()
    late[:, 6] = np.roll(SIGNAL[:, 6], 3)
    (tmp_path / "r.dat").write_bytes(late.astype("<i2").tobytes())
    path = header(tmp_path / "r", "r 12 100 1000", ["r.dat"] * 12, late, form=["16"] * 6 + ["16:3"] + ["16"] * 5)
    recording = read_recording(path, 100, fill_missing="zero")
    np.testing.assert_allclose(recording.signal[:-3], MILLIVOLTS[:-3], rtol=0, atol=FLOAT64)
    assert np.argwhere(recording.missing).tolist() == [[997, 6], [998, 6], [999, 6]]


@pytest.mark.parametrize("fmt", ["16", "24", "32", "80", "212", "508", "516", "524"])
def test_formats_are_read(tmp_path: Path, fmt: str) -> None:
    coarse = np.clip(np.rint(SIGNAL / 20), -120, 120).astype(np.int64)
    options = {"fs": 100, "units": ["mV"] * 12, "adc_gain": [50.0] * 12, "baseline": [0] * 12}
    wfdb.wrsamp("r", sig_name=list(NAMES), write_dir=str(tmp_path), fmt=[fmt] * 12, d_signal=coarse, **options)
    recording = read_recording(tmp_path / "r.hea", 100)
    np.testing.assert_allclose(recording.signal, coarse / 50, rtol=0, atol=FLOAT64)


def _packed(samples: npt.NDArray[np.int16]) -> bytes:
    """Format 311: three samples of 10 bits in 4 bytes."""
    low, middle, high = (samples.reshape(-1, 3).T.astype(np.int64) & 1023).astype("<u4")
    return (low | middle << 10 | high << 20).tobytes()


@pytest.mark.parametrize(
    ("fmt", "encode"),
    [
        ("61", lambda samples: samples.astype(">i2").tobytes()),
        ("160", lambda samples: (samples.astype(np.int32) + 32768).astype("<u2").tobytes()),
        ("311", _packed),
    ],
)
def test_formats_that_wfdb_does_not_write_are_read(tmp_path: Path, fmt: str, encode: Any) -> None:
    coarse = np.rint(SIGNAL / 10).astype(np.int16)
    (tmp_path / "r.dat").write_bytes(encode(coarse))
    path = header(tmp_path / "r", "r 12 100 1000", ["r.dat"] * 12, coarse, form=[fmt] * 12, gain=["100/mV"] * 12)
    np.testing.assert_allclose(read_recording(path, 100).signal, coarse / 100, rtol=0, atol=FLOAT64)


def test_a_lead_per_file_and_units_of_any_spelling(tmp_path: Path) -> None:
    for i, lead in enumerate(NAMES):
        (tmp_path / f"{lead} 1.dat".replace(" ", "-")).write_bytes(SIGNAL[:, i].astype("<i2").tobytes())
    files = [f"{lead}-1.dat" for lead in NAMES]
    gain = ["1/uV", "1/µV", "1000/mv", "1000000/V", *["1000.0(0)/mV"] * 8]
    names = ["Lead I", "lead II", *NAMES[2:]]
    same(read_recording(header(tmp_path / "r", "r 12 100 1000", files, gain=gain, name=names), 100))


@pytest.fixture
def segmented(tmp_path: Path) -> Path:
    """A record of two segments of different gain, a gap of 100 samples between them, and a lead less in the second."""
    (tmp_path / "s_1.dat").write_bytes(SIGNAL[:400].astype("<i2").tobytes())
    header(tmp_path / "s_1", "s_1 12 100 400", ["s_1.dat"] * 12, SIGNAL[:400])
    second = (2 * SIGNAL[500:, :11]).astype("<i2")
    (tmp_path / "s_2.dat").write_bytes(second.tobytes())
    header(tmp_path / "s_2", "s_2 11 100 500", ["s_2.dat"] * 11, second, gain=["2000/mV"] * 11, name=list(NAMES[:11]))
    header(tmp_path / "s_layout", "s_layout 12 100 0", ["~"] * 12, form=["0"] * 12)
    (tmp_path / "s.hea").write_text("s/4 12 100 1000\ns_layout 0\ns_1 400\n~ 100\ns_2 500\n")
    return tmp_path


def test_segments_are_one_recording(segmented: Path) -> None:
    recording = read_recording(segmented / "s.hea", 100, fill_missing="zero")
    missing = np.zeros((1000, 12), bool)
    missing[400:500] = missing[500:, 11] = True
    np.testing.assert_array_equal(recording.missing, missing)
    np.testing.assert_allclose(recording.signal, np.where(missing, 0, MILLIVOLTS), rtol=0, atol=FLOAT64)
    assert find_recordings(segmented) == [segmented / "s.hea"]
    with pytest.raises(ValueError, match="only describes the layout of another record"):
        read_recording(segmented / "s_layout.hea", 100)


def test_segments_of_fixed_layout_and_their_faults(segmented: Path) -> None:
    half = (SIGNAL[400:]).astype("<i2")
    (segmented / "s_3.dat").write_bytes(half.tobytes())
    header(segmented / "s_3", "s_3 12 100 600", ["s_3.dat"] * 12, SIGNAL[400:])
    (segmented / "t.hea").write_text("t/2 12 100 1000\ns_1 400\ns_3 600\n")
    same(read_recording(segmented / "t.hea", 100))
    for text, message in (
        ("t/2 12 100 1000\ns_1 400\ns_3 500\n", "has 600 samples in s_3, expected 500"),
        ("t/3 12 100 1000\ns_1 400\ns_3 600\n", "announces 3 segments and describes 2"),
        ("t/2 12 100 1000\ns_1 400\nt 600\n", "has a segment t that has segments itself"),
        ("t/2 12 100 1000\ns_1 400\n../s_3 600\n", "../s_3.hea is not a file beside its header"),
        ("t/2 12 100 1000\ns_1 400\ns_9 600\n", "s_9.hea is missing"),
        ("t/2 12 100 1000\ns_1 400\n~ 9999999999\n", "cut out the part"),
        ("t/2 12 100 1000\ns_1 400\ns 600\n", "has a segment s that has segments itself"),
    ):
        (segmented / "t.hea").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_recording(segmented / "t.hea", 100)
    content = bytearray(half.tobytes())
    content[0] ^= 1
    (segmented / "s_3.dat").write_bytes(content)
    (segmented / "t.hea").write_text("t/2 12 100 1000\ns_1 400\ns_3 600\n")
    with pytest.raises(ValueError, match=r"wrong checksum of lead I$"):
        read_recording(segmented / "t.hea", 100)


def test_what_else_is_wrong_with_a_record_is_answered(tmp_path: Path) -> None:
    (tmp_path / "r.dat").write_bytes(SIGNAL.astype("<i2").tobytes())
    path = header(tmp_path / "r", "r 12 100 1000", ["r.dat"] * 12, name=[f"ch{i}" for i in range(12)])
    with pytest.raises(ValueError, match=r"no lead among the names of its 12 columns.*--leads"):
        read_recording(path, 100)
    same(read_recording(path, 100, given_leads=LEADS))
    with pytest.raises(ValueError, match="sampled at 100 Hz by its header, and --sampling_rate says 257"):
        read_recording(path, 100, given_leads=LEADS, given_rate=257.0)
    with pytest.raises(ValueError, match="is in mV by its header, and --unit says uV"):
        read_recording(path, 100, given_leads=LEADS, given_unit="uV")
    path = header(tmp_path / "r", "r 12 0.002 1000", ["r.dat"] * 12)
    with pytest.raises(ValueError, match=r"is sampled at 0\.002 Hz by its header, expected a rate in Hz, not a period"):
        read_recording(path, 100)
    for rate in ("-100", "nan", "abc", "100Hz"):  # of which wfdb makes 250 or 100
        path = header(tmp_path / "r", f"r 12 {rate} 1000", ["r.dat"] * 12)
        with pytest.raises(ValueError, match=f"has '{rate}' for a sampling rate, expected Hz"):
            read_recording(path, 100)
    path = header(tmp_path / "r", "r 12 100 1000", ["r.dat"] * 12, gain=["1000000/mV"] * 12)
    with pytest.raises(ValueError, match=r"cannot be an ECG in mV, 12 of 12 leads.*the unit is likely V"):
        read_recording(path, 100)
    path = header(tmp_path / "r", "r 12 100 1000", ["gone.dat"] * 12, gain=["1/uV"] * 12)
    with pytest.raises(ValueError, match=r"gone\.dat is missing; copy it beside r.hea"):
        read_recording(path, 100)
