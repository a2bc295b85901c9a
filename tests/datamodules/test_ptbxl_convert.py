"""The conversion: whole or absent, and honest about records it could not take."""

import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from datamodules.ptbxl import convert, files, read_database, read_record
from datamodules.ptbxl.record import Record
from tests.support.ptbxl import COUNT, copy_to


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "CHUNK", 16)


def _convert(source: Path, parent: Path | None = None) -> convert.Converted:
    return convert.convert(source, parent or source, 100, read_database(source))


def _record(source: Path, ecg_id: int) -> Path:
    return source / "records100" / "00000" / f"{ecg_id:05d}_lr"


def _corrupt(source: Path, ecg_id: int) -> bytes:
    """Truncates a record; returns what it was."""
    path = _record(source, ecg_id).with_suffix(".dat")
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    return content


def test_every_record_is_in_the_map_in_the_order_of_the_table(tmp_path: Path) -> None:
    source = copy_to(tmp_path)
    converted = _convert(source)
    table = read_database(source)
    assert converted.signals.shape == (COUNT, 1000, 12)
    for row, name in enumerate(table["filename_lr"]):
        assert np.array_equal(converted.signals[row], read_record(source, name, 100).signal)
    assert converted.quarantine == []
    assert convert.damaged_chunks(converted.folder) == []
    assert not any(path.name.endswith(".unfinished") for path in source.iterdir())


def test_a_finished_conversion_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = copy_to(tmp_path)
    first = _convert(source)
    shutil.rmtree(source / "records100")
    monkeypatch.setattr(convert, "read_record", None)
    assert _convert(source).meta == first.meta


def test_another_table_or_sampling_rate_has_another_conversion(tmp_path: Path) -> None:
    source = copy_to(tmp_path)
    first = convert.location(source, tmp_path, 100)
    assert convert.location(source, tmp_path, 500) != first
    path = source / files.DATABASE
    path.write_text(path.read_text().replace("2000-01-01", "2000-01-02", 1))
    assert convert.location(source, tmp_path, 100) != first


def test_corrupt_records_are_listed_with_the_reason_and_the_others_taken(tmp_path: Path) -> None:
    source = copy_to(tmp_path)
    _corrupt(source, 3)
    _record(source, 40).with_suffix(".hea").unlink()
    converted = _convert(source)
    assert converted.quarantine == [
        {
            "ecg_id": 3,
            "record": "records100/00000/00003_lr",
            "reason": "00003_lr.dat holds 23998 bytes, its header says 24000",
        },
        {"ecg_id": 40, "record": "records100/00000/00040_lr", "reason": "00040_lr.hea is missing"},
    ]
    assert not converted.signals[2].any()
    assert not converted.signals[39].any()
    assert np.array_equal(converted.signals[3], read_record(source, "records100/00000/00004_lr", 100).signal)


def test_a_replaced_record_leaves_quarantine(tmp_path: Path) -> None:
    source = copy_to(tmp_path)
    whole = {ecg_id: _corrupt(source, ecg_id) for ecg_id in (3, 100)}
    before = _convert(source)
    assert _convert(source).meta == before.meta
    _record(source, 100).with_suffix(".dat").write_bytes(whole[100])
    after = _convert(source)
    assert [entry["ecg_id"] for entry in after.quarantine] == [3]
    assert after.signals[99].any()
    _record(source, 3).with_suffix(".dat").write_bytes(whole[3])
    assert _convert(source).quarantine == []
    fresh = _convert(source, tmp_path / "fresh")
    assert _convert(source).meta == fresh.meta
    assert convert.damaged_chunks(fresh.folder) == []


def test_odd_leads_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(root: Path, name: str, rate: int) -> Record:
        signal = read_record(root, name, rate).signal
        return Record(signal, ["I", "II"], ["V1"], [])

    monkeypatch.setattr(convert, "read_record", odd)
    assert _convert(copy_to(tmp_path)).meta["missing_flat_saturated_leads"] == [2 * COUNT, COUNT, 0]


def _slow(root: Path, name: str, rate: int) -> Record:
    time.sleep(0.02)
    return read_record(root, name, rate)


def _convert_slowly(source: Path) -> None:
    convert.read_record = _slow  # type: ignore[attr-defined]
    convert.THREADS = 2
    _convert(source)


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Path, multiprocessing.Process]:
    """A data set, and a process that has begun to convert it."""
    source = copy_to(tmp_path)
    process = multiprocessing.get_context("fork").Process(target=_convert_slowly, args=(source,))
    process.start()
    while not list(source.glob(".converted-*.unfinished/signals.npy")):
        time.sleep(0.01)
    return source, process


def test_after_a_killed_conversion_the_next_one_starts_again(begun: tuple[Path, multiprocessing.Process]) -> None:
    source, process = begun
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list(source.glob("converted-*"))
    converted = _convert(source)
    assert convert.damaged_chunks(converted.folder) == []
    assert converted.signals.any(axis=(1, 2)).all()
    assert not list(source.glob(".converted-*"))


def test_two_at_once_share_one_conversion(
    begun: tuple[Path, multiprocessing.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, process = begun
    monkeypatch.setattr(convert, "read_record", None)
    assert _convert(source).signals.shape[0] == COUNT
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("name", ["signals.npy", "meta.json"])
def test_a_damaged_conversion_is_named(tmp_path: Path, name: str) -> None:
    source = copy_to(tmp_path)
    path = _convert(source).folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"converted-100hz-\w+ is damaged .*; delete it, and it is converted again"):
        _convert(source)


def test_flipped_bytes_in_the_map_are_found(tmp_path: Path) -> None:
    folder = _convert(copy_to(tmp_path)).folder
    with (folder / "signals.npy").open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"x")
    assert convert.damaged_chunks(folder) == [COUNT // 16]


def test_a_full_disk_leaves_nothing_and_is_told(tmp_path: Path) -> None:
    source = copy_to(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write the conversion of PTB-XL in .*; it needs 4 MiB; free some"):
            _convert(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(source.glob("*converted*"))
    assert len(_convert(source).signals) == COUNT


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take another user's rights")
def test_a_folder_that_cannot_be_written_is_named() -> None:
    root = Path(tempfile.mkdtemp())
    try:
        root.chmod(0o755)
        source = copy_to(root)
        os.seteuid(65534)
        try:
            with pytest.raises(OSError, match=r"Permission denied; choose a root that can be written, and name"):
                _convert(source)
        finally:
            os.seteuid(0)
        converted = _convert(source)
        os.seteuid(65534)
        try:
            assert _convert(source).meta == converted.meta  # to read a finished one takes no right to write
        finally:
            os.seteuid(0)
    finally:
        shutil.rmtree(root)


def test_a_record_outside_the_folder_goes_to_quarantine(tmp_path: Path) -> None:
    source = copy_to(tmp_path)
    path = source / files.DATABASE
    path.write_text(path.read_text().replace("records100/00000/00007_lr", "../00007_lr"))
    (entry,) = _convert(source).quarantine
    assert (entry["ecg_id"], entry["reason"]) == (7, "its path points outside the data folder")


def test_bytes_that_were_flipped_in_a_record_never_reach_the_map(tmp_path: Path) -> None:
    source = copy_to(tmp_path)
    path = _record(source, 9).with_suffix(".dat")
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    (entry,) = _convert(source).quarantine
    assert entry["reason"].startswith("wrong checksum of lead")
