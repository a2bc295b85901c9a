"""A recording of one's own, of any format: leads, units, rates, gaps, and what is said about a bad one."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import wfdb

from datamodules.ptbxl import LEADS, Recording, find_recordings, read_recording, simulate
from datamodules.ptbxl.leads import read_name
from datamodules.ptbxl.readers.contents import years
from datamodules.ptbxl.typical import unlike
from tests.support.tolerances import FLOAT64, allowed

SIGNAL = simulate("SR", 0, np.random.default_rng(0))
MILLIVOLTS = SIGNAL / 1000
NAMED: dict[str, Any] = {"given_rate": 100.0, "given_leads": LEADS}


def write(folder: Path, signal: npt.NDArray[Any] = SIGNAL, leads: tuple[str, ...] = LEADS, **changed: Any) -> Path:
    count = len(leads)
    options = {"fs": 100, "units": ["mV"] * count, "fmt": ["16"] * count, "adc_gain": [1000.0] * count}
    arguments = {**options, "baseline": [0] * count, "d_signal": signal.astype(np.int64), **changed}
    wfdb.wrsamp("r", sig_name=list(leads), write_dir=str(folder), **arguments)
    return folder / "r.hea"


def array(folder: Path, values: npt.NDArray[Any], **options: Any) -> Recording:
    np.save(folder / "a.npy", values)
    return read_recording(folder / "a.npy", 100, **{**NAMED, **options})


def changed(rows: slice, leads: list[int], value: float) -> npt.NDArray[Any]:
    values = MILLIVOLTS.copy()
    values[rows, leads] = value
    return values


WHOLE = slice(None)


@pytest.mark.parametrize(("unit", "gain"), [("mV", 1000.0), ("uV", 1.0), ("V", 1e6)])
def test_wfdb_in_any_unit_and_order_is_the_same_signal(tmp_path: Path, unit: str, gain: float) -> None:
    order = np.random.default_rng(1).permutation(12)
    names = tuple(LEADS[i].replace("AV", "aV").lower() for i in order)
    path = write(tmp_path, SIGNAL[:, order], names, units=[unit] * 12, adc_gain=[gain] * 12)
    recording = read_recording(path, 100)
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=FLOAT64)
    assert (recording.name, recording.original_rate, recording.notes) == ("r", 100, [])


@pytest.mark.parametrize("rate", [257.0, 360.0, 500.0, 1000.0, 99.5])
def test_resampling_keeps_low_tones_and_removes_high_ones(tmp_path: Path, rate: float) -> None:
    """5 Hz arrives as 5 Hz, in phase; 70 Hz, which would fold to 30 Hz, does not arrive."""
    time = np.arange(round(10 * rate)) / rate
    low = np.sin(2 * np.pi * 5 * time)
    high = np.sin(2 * np.pi * 70 * time) if rate > 140 else 0 * time
    recording = array(tmp_path, np.outer(low + high, np.linspace(1, 2, 12)), given_rate=rate)
    assert abs(len(recording.signal) - 1000) <= 1
    wanted = np.sin(2 * np.pi * 5 * np.arange(len(recording.signal)) / 100)
    middle = slice(50, 950)
    np.testing.assert_allclose(
        recording.signal[middle, 0], wanted[middle], rtol=0, atol=allowed(0.01, "the filter that resamples")
    )
    assert recording.notes == [f"resampled from {rate:g} to 100 Hz"]


@pytest.mark.parametrize("rate", [100, 250])
def test_limb_leads_follow_from_two_of_them(tmp_path: Path, rate: int) -> None:
    """The generator's own limb leads, up to its rounding to 1 microvolt."""
    signal = simulate("SR", 0, np.random.default_rng(0), rate)
    whole = read_recording(write(tmp_path, signal, fs=rate), 100)
    kept = [0, 1, *range(6, 12)]
    path = write(tmp_path, signal[:, kept], tuple(LEADS[i] for i in kept), fs=rate)
    with pytest.raises(ValueError, match=r"has 8 leads .*, without III, AVR, AVL, AVF; give all twelve"):
        read_recording(path, 100)
    recording = read_recording(path, 100, fill_missing="derive")
    np.testing.assert_allclose(
        recording.signal, whole.signal, rtol=0, atol=allowed(0.0011, "the generator rounds to a microvolt")
    )
    assert recording.notes[-1] == "derived from I and II: III, AVR, AVL, AVF"
    assert not recording.missing.any()


def test_missing_leads_are_named_or_filled(tmp_path: Path) -> None:
    path = write(tmp_path, SIGNAL[:, :2], LEADS[:2])
    with pytest.raises(ValueError, match=r"without V1, V2, V3, V4, V5, V6; give all twelve, or --fill_missing zero"):
        read_recording(path, 100, fill_missing="derive")
    recording = read_recording(path, 100, fill_missing="zero")
    assert recording.missing[:, 6:].all()
    assert not recording.missing[:, :6].any()
    assert recording.notes[1] == "missing, filled: V1, V2, V3, V4, V5, V6"


def test_missing_samples_are_counted_or_filled(tmp_path: Path) -> None:
    signal = SIGNAL.copy()
    signal[3:5, 4] = -32768
    path = write(tmp_path, signal)
    with pytest.raises(ValueError, match=r"missing samples \(NaN\) in AVL \(2\); cut them out, or --fill_missing zero"):
        read_recording(path, 100)
    recording = read_recording(path, 100, fill_missing="zero")
    assert np.argwhere(recording.missing).tolist() == [[3, 4], [4, 4]]
    assert recording.notes == ["missing samples filled in AVL (0.02 s)"]


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_a_recording_with_gaps_is_unlike_the_training_data(tmp_path: Path, value: float) -> None:
    """2.5 s of each lead, as on paper; the rest is missing or exactly zero."""
    values = np.full_like(MILLIVOLTS, value)
    for lead in range(12):
        rows = slice(250 * (lead // 3), 250 * (lead // 3 + 1))
        values[rows, lead] = MILLIVOLTS[rows, lead]
    recording = array(tmp_path, values, fill_missing="zero")
    [gaps, *_] = unlike(recording, dict.fromkeys(("amplitude", "slow", "fast", "limb leads"), (-np.inf, np.inf)))
    assert gaps.startswith("without a signal (missing or unchanged): I 7.5 s, II 7.5 s")
    assert recording.silent == pytest.approx(dict.fromkeys(LEADS, 7.5), abs=allowed(0.2, "the heart stands still too"))
    assert array(tmp_path, MILLIVOLTS).silent == {}


def _truncated(folder: Path) -> Path:
    path = write(folder)
    (folder / "r.dat").write_bytes((folder / "r.dat").read_bytes()[:-8])
    return path


def _flipped(folder: Path) -> Path:
    path = write(folder)
    content = bytearray((folder / "r.dat").read_bytes())
    content[2] ^= 0x55  # of lead II
    (folder / "r.dat").write_bytes(content)
    return path


def _elsewhere(folder: Path) -> Path:
    path = write(folder)
    (folder / "inside").mkdir()
    (folder / "inside" / "r.hea").write_text(path.read_text().replace("r.dat", "../r.dat"))
    return folder / "inside" / "r.hea"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_truncated, "cannot be read"),
        (_flipped, "wrong checksum of lead II"),
        (_elsewhere, "cannot be read: ../r.dat is not a file beside its header"),
        (lambda f: write(f, np.zeros_like(SIGNAL)), "12 of 12 leads: I .constant at 0 mV.*no electrode was connected"),
        (lambda f: write(f, SIGNAL[:99]), r"has 0\.99 s, expected at least 1 s"),
        (lambda f: write(f, units=["bpm"] * 12), "is in bpm, expected mV, uV, nV or V"),
    ],
)
def test_a_bad_wfdb_record_is_answered(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_recording(make(tmp_path), 100)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (MILLIVOLTS, {"given_rate": None}, "needs a sampling rate in Hz: --sampling_rate"),
        (MILLIVOLTS, {"given_leads": None}, "does not name its leads; .*--leads"),
        (MILLIVOLTS[:, :11], {}, r"has 1000 columns, and --leads names 12|has 11 columns, and --leads names 12"),
        (MILLIVOLTS[:, 0], {}, r"shape \(1000,\), expected one array of numbers"),
        (MILLIVOLTS / 0.0, {}, "has infinite values"),
        (MILLIVOLTS, {"given_leads": ["I"] * 12}, "has lead I more than once"),
        (np.array([{}]), {}, "is not an array of numbers"),
        (
            MILLIVOLTS,
            {"given_rate": 0.002},
            r"is sampled at 0\.002 Hz by --sampling_rate, expected a rate .* not a per",
        ),
    ],
)
def test_a_bad_array_is_answered(tmp_path: Path, values: Any, options: Any, message: str) -> None:
    with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(ValueError, match=message):
        array(tmp_path, values, **options)


@pytest.mark.parametrize("values", [MILLIVOLTS, MILLIVOLTS.T])
def test_the_side_with_as_many_as_there_are_names_is_the_leads(tmp_path: Path, values: npt.NDArray[Any]) -> None:
    np.testing.assert_allclose(array(tmp_path, values).signal, MILLIVOLTS, rtol=0, atol=FLOAT64)


UNITS = np.repeat(["mV", "uV"], 6)


def test_npz_has_its_own_rate_leads_and_units_and_options_win(tmp_path: Path) -> None:
    factors = np.repeat([1, 1000], 6)
    np.savez(tmp_path / "a.npz", x=MILLIVOLTS * factors, fs=100, leads=np.array(LEADS), unit=UNITS)
    recording = read_recording(tmp_path / "a.npz", 100)
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=FLOAT64)
    np.savez(tmp_path / "b.npz", x=MILLIVOLTS[:, ::-1] * 1000, fs=50, leads=np.array(LEADS), unit="mV")
    recording = read_recording(tmp_path / "b.npz", 100, **{**NAMED, "given_leads": LEADS[::-1]}, given_unit="uV")
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=FLOAT64)
    assert recording.notes == ["taken for 100 Hz as given; the file says 50 Hz"]
    np.savez(tmp_path / "c.npz", a=MILLIVOLTS, b=MILLIVOLTS)
    with pytest.raises(ValueError, match=r"float64 of shape .*, expected one array of numbers"):
        read_recording(tmp_path / "c.npz", 100, **NAMED)


@pytest.mark.parametrize(
    ("values", "unit", "message"),
    [
        (MILLIVOLTS / 1000, "V", r"ECG in mV, 12 of 12 leads: I \(a range of .*the unit is likely V: --unit V"),
        (1000 * MILLIVOLTS, "uV", r"ECG in mV, 12 of 12 leads: I \(a range of .*the unit is likely uV: --unit uV"),
        (MILLIVOLTS + 60, None, r"I \(a median of .*or an offset is wrong"),
        (MILLIVOLTS / 1e5, None, "or these are counts of a converter"),
        (changed(WHOLE, list(range(8)), 0.01), None, r"8 of 12 leads: I \(constant at 0\.01 mV\)"),
    ],
)
def test_an_amplitude_that_no_ecg_in_mv_has_is_refused_with_the_likely_unit(
    tmp_path: Path, values: npt.NDArray[Any], unit: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"{message}.*--implausible accept"):
        array(tmp_path, values)
    np.testing.assert_allclose(array(tmp_path, values, implausible="accept").signal, values, rtol=0, atol=FLOAT64)
    if unit:
        np.testing.assert_allclose(array(tmp_path, values, given_unit=unit).signal, MILLIVOLTS, rtol=0, atol=FLOAT64)


def test_a_few_flat_or_weak_leads_are_named(tmp_path: Path) -> None:
    [note] = array(tmp_path, changed(WHOLE, [0, 1], 0.0)).notes
    assert note == "implausible: I (constant at 0 mV), II (constant at 0 mV)"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Lead aVR [uV]", ("AVR", 1, "uV")), ("MDC_ECG_LEAD_V3", ("V3", 1, None)), ("DII", ("II", 1, None)),
        ("ECG II", ("II", 1, None)), ("ecg_v1", ("V1", 1, None)), ("'V5'", ("V5", 1, None)), ("I_mV", ("I", 1, "mV")),
        ("MLII", ("II", 1, None)), ("-aVR", ("AVR", -1, None)), ("-V1", ("V1", -1, None)), ("I (kV)", ("I", 1, "kV")),
        *((name, None) for name in ("Lead 4", "V", "V7", "resp", "I_filtered", "\u2212V1", "V1 inverted", "--V1", "+I",
                                    "Lead -V1", "V 1", "I - II", "V1/V2", "", "1")),
    ],
)  # fmt: skip
def test_only_documented_names_are_leads(name: str, expected: Any) -> None:
    found = read_name(name)
    assert (None if found is None else found[:3]) == expected


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("63", 63), ("63 years", 63), (" 1 year", 1), ("P12Y", 12), ("18 months", 1.5), ("P6M", 0.5),
        ("10 days", 10 / 365.25), ("3 weeks", 21 / 365.25), ("63 M", None), ("P", None), ("?", None), ("", None),
        ("6-12 months", None), ("-1", None), ("3 decades", None),
    ],
)  # fmt: skip
def test_ages_are_in_years_or_in_documented_units(text: str, age: float | None) -> None:
    assert years(text) == (None if age is None else pytest.approx(age))


def test_recordings_are_found(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "deep").mkdir()
    np.save(tmp_path / "deep" / "a.npy", MILLIVOLTS)
    assert find_recordings(tmp_path) == [tmp_path / "deep" / "a.npy", path]
    assert find_recordings(path) == find_recordings(tmp_path / "r") == [path]
    for absent in (tmp_path / "x", tmp_path / "x.csv"):
        with pytest.raises(FileNotFoundError, match="got no such file; name a WFDB header"):
            find_recordings(absent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="got none"):
        find_recordings(tmp_path / "empty")
    (tmp_path / "x.mat").write_bytes(b"0")
    with pytest.raises(ValueError, match="which is none that is read; give a WFDB header"):
        find_recordings(tmp_path / "x.mat")
    (tmp_path / "empty" / "r.hea").symlink_to(path)
    assert find_recordings(tmp_path / "empty") == [tmp_path / "empty" / "r.hea"]


def test_names_in_upper_case_are_found(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "r.hea").rename(tmp_path / "UP.HEA")
    (tmp_path / "r.dat").rename(tmp_path / "R.DAT")
    assert find_recordings(tmp_path) == find_recordings(tmp_path / "UP") == [tmp_path / "UP.HEA"]
    recording = read_recording(tmp_path / "UP.HEA", 100)
    assert recording.name == "UP"
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=FLOAT64)
