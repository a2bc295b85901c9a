"""One WFDB record: what is read, and what is said about a bad one."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import wfdb

from datamodules.ptbxl import LEADS, CorruptRecordError, read_record, simulate
from datamodules.ptbxl import record as reading
from tests.support.tolerances import FLOAT64

SIGNAL = simulate("SR", 0, np.random.default_rng(0))


def _write(folder: Path, signal: npt.NDArray[Any] = SIGNAL, leads: tuple[str, ...] = LEADS, **changed: Any) -> None:
    count = len(leads)
    options = {"fs": 100, "units": ["mV"] * count, "fmt": ["16"] * count, "adc_gain": [1000.0] * count}
    arguments = {**options, "baseline": [0] * count, "d_signal": signal.astype(np.int64), **changed}
    wfdb.wrsamp("r", sig_name=list(leads), write_dir=str(folder), **arguments)


def test_a_record_is_what_was_written(tmp_path: Path) -> None:
    _write(tmp_path)
    record = read_record(tmp_path, "r", 100)
    assert np.array_equal(record.signal, SIGNAL)
    assert (record.missing, record.flat, record.saturated) == ([], [], [])


def test_it_agrees_with_wfdb(tmp_path: Path) -> None:
    signal = SIGNAL.copy()
    signal[3, 4] = reading.MISSING
    _write(tmp_path, signal)
    millivolts = np.array(wfdb.rdrecord(str(tmp_path / "r")).p_signal)
    millivolts[3, 4] = reading.MISSING / 1000
    np.testing.assert_allclose(read_record(tmp_path, "r", 100).signal / 1000, millivolts, rtol=0, atol=FLOAT64)


def test_leads_in_another_order_are_put_right(tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(12)
    _write(tmp_path, SIGNAL[:, order], tuple(LEADS[i].replace("AV", "aV") for i in order))
    assert np.array_equal(read_record(tmp_path, "r", 100).signal, SIGNAL)


def test_missing_flat_and_saturated_leads_are_counted(tmp_path: Path) -> None:
    signal = SIGNAL.copy()
    signal[10:20, 1] = reading.MISSING
    signal[:, 4] = 25
    signal[:, 7] = reading.MISSING
    signal[100, 9] = 32767
    signal[100, 11] = -32767
    _write(tmp_path, signal)
    record = read_record(tmp_path, "r", 100)
    assert record.missing == ["II", "V2"]
    assert record.flat == ["AVL", "V2"]
    assert record.saturated == ["V4", "V6"]


def _truncate(folder: Path) -> None:
    path = folder / "r.dat"
    path.write_bytes(path.read_bytes()[:-100])


def _flip_bytes(folder: Path) -> None:
    content = bytearray((folder / "r.dat").read_bytes())
    content[240:280] = bytes(byte ^ 0x55 for byte in content[240:280])
    (folder / "r.dat").write_bytes(content)


def _header(old: str, new: str) -> Any:
    def change(folder: Path) -> None:
        text = (folder / "r.hea").read_text()
        assert old in text
        (folder / "r.hea").write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, r"r.dat holds 23900 bytes, its header says 24000"),
        (lambda folder: (folder / "r.dat").unlink(), r"r.dat is missing"),
        (lambda folder: (folder / "r.hea").unlink(), r"r.hea is missing"),
        (lambda folder: (folder / "r.hea").write_bytes(b""), r"r.hea is not a header of PTB-XL"),
        (lambda folder: (folder / "r.hea").write_bytes(b"\xff\x00" * 40), r"r.hea is not a header of PTB-XL"),
        (_flip_bytes, r"wrong checksum of lead I, II"),
        (_header("r 12 100", "r 13 100"), r"has 13 leads, expected 12"),
        (_header("r 12 100 1000", "r 12 100 900"), r"has 900 samples per lead, expected 1000"),
        (_header("r 12 100 1000", "r 12 257 1000"), r"has 257 Hz, expected 100"),
        (_header("1000.0(0)/mV", "0(0)/mV"), r"r.hea is not a header of PTB-XL"),
        (_header("1000.0(0)/mV", "1.0(0)/uV"), r"r.hea is not a header of PTB-XL"),
        (_header(" 0 V6", " 0 V7"), r"has the leads .*V5, V7, expected I, II"),
        (_header("r.dat 16", "../r.dat 16"), r"r.hea is not a header of PTB-XL"),
    ],
)
def test_a_bad_record_is_refused_with_the_reason(tmp_path: Path, damage: Any, reason: str) -> None:
    _write(tmp_path)
    damage(tmp_path)
    with pytest.raises(CorruptRecordError, match=reason):
        read_record(tmp_path, "r", 100)


def test_a_wrong_checksum_in_the_header_is_found_modulo_65536(tmp_path: Path) -> None:
    _write(tmp_path)
    checksum = wfdb.rdheader(str(tmp_path / "r")).checksum[0]
    _header(f" {checksum} 0 I\n", f" {checksum - 65536} 0 I\n")(tmp_path)  # older writers: signed
    assert np.array_equal(read_record(tmp_path, "r", 100).signal, SIGNAL)
    _header(f" {checksum - 65536} 0 I\n", f" {checksum + 1} 0 I\n")(tmp_path)
    with pytest.raises(CorruptRecordError, match=r"wrong checksum of lead I$"):
        read_record(tmp_path, "r", 100)


@pytest.mark.parametrize(
    ("signal", "leads", "reason"),
    [
        (SIGNAL[:, :2], LEADS[:2], "has 2 leads, expected 12"),
        (np.zeros_like(SIGNAL), LEADS, "no lead carries a signal"),
        (np.full_like(SIGNAL, reading.MISSING), LEADS, "no lead carries a signal"),
    ],
)
def test_a_record_of_another_kind_is_refused(
    tmp_path: Path, signal: npt.NDArray[Any], leads: tuple[str, ...], reason: str
) -> None:
    _write(tmp_path, signal, leads)
    with pytest.raises(CorruptRecordError, match=reason):
        read_record(tmp_path, "r", 100)


@pytest.mark.parametrize("outside", ["../r", "a/../../r"])
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, outside: str) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    _write(tmp_path)
    with pytest.raises(CorruptRecordError, match="points outside the data folder"):
        read_record(tmp_path / "data", outside, 100)
    with pytest.raises(CorruptRecordError, match="points outside the data folder"):
        read_record(tmp_path / "data", str(tmp_path / "r"), 100)


@pytest.mark.parametrize("place", ["root", "folder", "file"])
def test_a_link_that_the_user_made_is_followed(tmp_path: Path, place: str) -> None:
    """Names of a table must stay inside; where a folder really lies is for its owner to say."""
    (tmp_path / "other").mkdir()
    _write(tmp_path / "other")
    data = tmp_path / "data"
    if place == "root":
        (tmp_path / "other" / "records100").symlink_to(".")
        data.symlink_to("other")
    elif place == "folder":
        data.mkdir()
        (data / "records100").symlink_to(tmp_path / "other")
    else:
        (data / "records100").mkdir(parents=True)
        for path in (tmp_path / "other").iterdir():
            (data / "records100" / path.name).symlink_to(path)
    expected = read_record(tmp_path / "other", "r", 100).signal
    np.testing.assert_array_equal(read_record(data, "records100/r", 100).signal, expected)
