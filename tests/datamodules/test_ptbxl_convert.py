"""The conversion: whole or absent, resumed after a kill, and honest about records it could not take."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.ptbxl import convert, files, read_database, read_record
from datamodules.ptbxl.record import CorruptRecordError, Record
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
    listed = json.loads((converted.folder / "quarantine.json").read_text())
    assert listed == [
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


def _unfinished(source: Path) -> Path:
    (path,) = source.glob(".converted-*.unfinished")
    return path


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A data set whose conversion was killed when a third of it was done."""
    source = copy_to(tmp_path)
    process = multiprocessing.get_context("fork").Process(target=_convert_slowly, args=(source,))
    process.start()
    deadline = time.monotonic() + 30
    lines = 0
    while lines < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
        journals = list(source.glob(".converted-*.unfinished/journal.jsonl"))
        lines = len(journals[0].read_text().splitlines()) if journals else 0
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert 4 <= lines < COUNT // 16
    assert not list(source.glob("converted-*"))
    return source


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the records that a conversion reads."""
    names: list[str] = []

    def reading(root: Path, name: str, rate: int) -> Record:
        names.append(name)
        return read_record(root, name, rate)

    monkeypatch.setattr(convert, "read_record", reading)
    return names


def test_a_killed_conversion_goes_on_and_loses_nothing(killed: Path, tmp_path: Path, seen: list[str]) -> None:
    done = len((_unfinished(killed) / "journal.jsonl").read_text().splitlines())
    resumed = _convert(killed)
    assert len(seen) == COUNT - 16 * done
    fresh = _convert(killed, tmp_path / "fresh")
    assert np.array_equal(resumed.signals, fresh.signals)
    assert resumed.meta == fresh.meta
    assert not list(killed.glob(".converted-*"))


def test_half_written_lines_and_rows_of_a_stopped_conversion_are_made_again(
    killed: Path, tmp_path: Path, seen: list[str]
) -> None:
    work = _unfinished(killed)
    lines = (work / "journal.jsonl").read_text().splitlines()
    (work / "journal.jsonl").write_text("\n".join(lines)[:-5])  # the last one torn
    with (work / "signals.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"rubbish")
    resumed = _convert(killed)
    assert len(seen) == COUNT - 16 * (len(lines) - 2)
    assert np.array_equal(resumed.signals, _convert(killed, tmp_path / "fresh").signals)


def test_an_interrupted_conversion_stops_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = copy_to(tmp_path)

    def interrupted(root: Path, name: str, rate: int) -> Record:
        if "00150" in name:
            raise KeyboardInterrupt
        return read_record(root, name, rate)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "read_record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _convert(source)
    assert len((_unfinished(source) / "journal.jsonl").read_text().splitlines()) == 9
    assert _convert(source).signals.shape[0] == COUNT


def test_two_at_once_share_one_conversion(tmp_path: Path, seen: list[str]) -> None:
    source = copy_to(tmp_path)
    process = multiprocessing.get_context("fork").Process(target=_convert_slowly, args=(source,))
    process.start()
    while not list(source.glob(".converted-*.unfinished/journal.jsonl")):
        time.sleep(0.01)
    assert _convert(source).signals.shape[0] == COUNT
    process.join()
    assert process.exitcode == 0
    assert seen == []


@pytest.mark.parametrize("name", ["signals.npy", "meta.json", "quarantine.json"])
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


def test_a_full_disk_is_told_before_anything_is_read(tmp_path: Path, seen: list[str]) -> None:
    source = copy_to(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write the conversion of PTB-XL in .*; it needs 4 MiB; free some"):
            _convert(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert seen == []
    assert len(_convert(source).signals) == COUNT


def test_a_disk_that_fills_up_meanwhile_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[str]
) -> None:
    source = copy_to(tmp_path)
    write = os.pwrite

    def full(descriptor: int, content: Any, offset: int) -> int:
        if offset > 2_500_000:
            raise OSError(28, "No space left on device")
        return write(descriptor, content, offset)

    with monkeypatch.context() as patch:
        patch.setattr(convert.os, "pwrite", full)
        with pytest.raises(OSError, match=r"No space left on device; it needs 4 MiB"):
            _convert(source)
    seen.clear()
    assert len(_convert(source).signals) == COUNT
    assert 0 < len(seen) < COUNT


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
    with pytest.raises(CorruptRecordError):
        read_record(source, entry["record"], 100)
