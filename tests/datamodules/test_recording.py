"""A recording of one's own: what is read from each format, and what is said about a bad one."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import wfdb

from datamodules.ptbxl import LEADS, find_recordings, read_recording, simulate
from tests.support.tolerances import FLOAT64, allowed

SIGNAL = simulate("SR", 0, np.random.default_rng(0))
MILLIVOLTS = SIGNAL / 1000


def write(folder: Path, signal: npt.NDArray[Any] = SIGNAL, leads: tuple[str, ...] = LEADS, **changed: Any) -> Path:
    count = len(leads)
    options = {"fs": 100, "units": ["mV"] * count, "fmt": ["16"] * count, "adc_gain": [1000.0] * count}
    arguments = {**options, "baseline": [0] * count, "d_signal": signal.astype(np.int64), **changed}
    wfdb.wrsamp("r", sig_name=list(leads), write_dir=str(folder), **arguments)
    return folder / "r.hea"


@pytest.mark.parametrize(("unit", "gain"), [("mV", 1000.0), ("uV", 1.0), ("V", 1e6)])
def test_wfdb_in_any_unit_and_order_is_the_same_signal(tmp_path: Path, unit: str, gain: float) -> None:
    order = np.random.default_rng(1).permutation(12)
    names = tuple(LEADS[i].replace("AV", "aV").lower() for i in order)
    path = write(tmp_path, SIGNAL[:, order], names, units=[unit] * 12, adc_gain=[gain] * 12)
    recording = read_recording(path, 100)
    np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=FLOAT64)
    assert (recording.name, recording.original_rate, recording.notes) == ("r", 100, [])


def test_csv_and_npy_are_the_same_signal(tmp_path: Path) -> None:
    rows = "\n".join(",".join(f"{value:.3f}" for value in row) for row in MILLIVOLTS[:, ::-1])
    header = ", ".join(reversed(LEADS))
    (tmp_path / "full.csv").write_text(f"# sampling_rate: 100\n{header}\n{rows}\n")
    (tmp_path / "bare.csv").write_text(rows + "\n")
    np.save(tmp_path / "a.npy", MILLIVOLTS[:, ::-1])
    backwards = list(reversed(LEADS))
    for path, options in (
        ("full.csv", {}),
        ("bare.csv", {"given_rate": 100.0, "given_leads": backwards}),
        ("a.npy", {"given_rate": 100.0, "given_leads": backwards}),
    ):
        recording = read_recording(tmp_path / path, 100, **options)  # type: ignore[arg-type]
        np.testing.assert_allclose(recording.signal, MILLIVOLTS, rtol=0, atol=FLOAT64)


@pytest.mark.parametrize("rate", [257.0, 360.0, 500.0, 1000.0, 99.5])
def test_resampling_keeps_low_tones_and_removes_high_ones(tmp_path: Path, rate: float) -> None:
    """5 Hz arrives as 5 Hz, in phase; 70 Hz, which would fold to 30 Hz, does not arrive."""
    time = np.arange(round(10 * rate)) / rate
    low = np.sin(2 * np.pi * 5 * time)
    high = np.sin(2 * np.pi * 70 * time) if rate > 140 else 0 * time
    np.save(tmp_path / "a.npy", np.outer(low + high, np.linspace(1, 2, 12)))
    recording = read_recording(tmp_path / "a.npy", 100, given_rate=rate, given_leads=LEADS)
    assert abs(len(recording.signal) - 1000) <= 1
    wanted = np.sin(2 * np.pi * 5 * np.arange(len(recording.signal)) / 100)
    middle = slice(50, 950)
    np.testing.assert_allclose(
        recording.signal[middle, 0], wanted[middle], rtol=0, atol=allowed(0.01, "the filter that resamples")
    )
    assert recording.notes == [f"resampled from {rate:g} to 100 Hz"]


def test_limb_leads_follow_from_two_of_them(tmp_path: Path) -> None:
    """The generator's own limb leads, up to its rounding to 1 microvolt."""
    kept = [0, 1, *range(6, 12)]
    path = write(tmp_path, SIGNAL[:, kept], tuple(LEADS[i] for i in kept))
    with pytest.raises(ValueError, match=r"has 8 leads .*, without III, AVR, AVL, AVF; give all twelve"):
        read_recording(path, 100)
    recording = read_recording(path, 100, fill_missing="derive")
    np.testing.assert_allclose(
        recording.signal, MILLIVOLTS, rtol=0, atol=allowed(0.0011, "the generator rounds to a microvolt")
    )
    assert recording.notes == ["derived from I and II: III, AVR, AVL, AVF"]
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
    assert recording.missing.sum() == 2
    assert recording.missing[3:5, 4].all()


def _truncated(folder: Path) -> Path:
    path = write(folder)
    (folder / "r.dat").write_bytes((folder / "r.dat").read_bytes()[:-7])
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
    text = path.read_text().replace("r.dat", "../r.dat")
    (folder / "inside" / "r.hea").write_text(text)
    return folder / "inside" / "r.hea"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_truncated, "holds 23993 bytes, its header says 24000"),
        (_flipped, "wrong checksum of lead II"),
        (_elsewhere, "cannot be read"),
        (lambda f: write(f, np.zeros_like(SIGNAL)), "is flat: no lead carries a signal"),
        (lambda f: write(f, SIGNAL[:99]), r"has 0\.99 s, expected at least 1 s"),
        (lambda f: write(f, units=["bpm"] * 12), "is in bpm, expected mV or uV or V"),
    ],
)
def test_a_bad_wfdb_record_is_answered(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_recording(make(tmp_path), 100)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (MILLIVOLTS, {"given_leads": LEADS}, "needs a sampling rate in Hz, got None; give it: --sampling_rate"),
        (MILLIVOLTS, {"given_rate": 100}, "does not name its leads"),
        (
            MILLIVOLTS[:, :11],
            {"given_rate": 100, "given_leads": LEADS},
            r"has 11 columns for 12 leads; it must be \(L, l",
        ),
        (1000 * MILLIVOLTS, {"given_rate": 100, "given_leads": LEADS}, "cannot be mV; convert it to mV"),
        (MILLIVOLTS[:, 0], {"given_rate": 100, "given_leads": LEADS}, r"shape \(1000,\), expected numbers of shape"),
        (MILLIVOLTS / 0.0, {"given_rate": 100, "given_leads": LEADS}, "has infinite values"),
        (MILLIVOLTS, {"given_rate": 100, "given_leads": ["I"] * 12}, "has lead I more than once"),
        (np.array([{}]), {"given_rate": 100, "given_leads": LEADS}, "is not an array of numbers"),
    ],
)
def test_a_bad_array_is_answered(tmp_path: Path, values: Any, options: Any, message: str) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match=message):
        read_recording(tmp_path / "a.npy", 100, **options)


def test_a_table_of_words_is_answered(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("I,II\nhigh,low\n")
    with pytest.raises(ValueError, match="is not a table of numbers"):
        read_recording(tmp_path / "a.csv", 100)


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
    (tmp_path / "deep" / "link.npy").symlink_to("/dev/null")
    (tmp_path / "empty" / "r.hea").symlink_to(path)
    assert find_recordings(tmp_path / "empty") == [tmp_path / "empty" / "r.hea"]
