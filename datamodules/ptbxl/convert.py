"""Conversion of PTB-XL's records to a memory map, after which loading never touches WFDB.

    <folder>/signals.npy       (records, L, 12) int16, 1000 units per mV, in the order of ptbxl_database.csv and `LEADS`
    <folder>/quarantine.json   records that could not be read, with the reason; their rows are zero
    <folder>/journal.jsonl     one line per chunk of rows: its sha256 and the findings in its records
    <folder>/meta.json         counts and the digest of the signals

It is created in a hidden folder and renamed, so that it is complete or absent. A conversion that was stopped or killed
resumes after the last chunk whose journal line and sha256 are right.
"""

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from datamodules.disk import locked, remedies
from datamodules.errors import InputError, MissingFileError
from datamodules.ptbxl import files
from datamodules.ptbxl.record import LEADS, SECONDS, CorruptRecordError, Signal, read_record

FORMAT_VERSION = 1  # part of the key: raise it when the conversion of the same files changes
CHUNK = 128  # records
THREADS = 8  # reading waits for the disk more than it computes


@dataclass(frozen=True)
class Converted:
    """Finished conversion: memory-mapped `signals` (records, L, 12) int16, and the findings in them."""

    folder: Path
    signals: Signal
    quarantine: list[dict[str, Any]]
    meta: dict[str, Any]


def location(source: Path, parent: Path, sampling_rate: int) -> Path:
    """Folder in `parent` for these tables and this sampling rate."""
    key = sha256(f"{FORMAT_VERSION} {sampling_rate} ".encode())
    for name in (files.DATABASE, files.DIGESTS):
        if (source / name).is_file():
            key.update(sha256((source / name).read_bytes()).digest())
    return parent / f"converted-{sampling_rate}hz-{key.hexdigest()[:16]}"


def load(folder: Path) -> Converted:
    """Memory-maps a finished conversion.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    if not folder.is_dir():
        raise MissingFileError(f"expected PTB-XL's signals in {folder}, got no such folder; call prepare_data() first")
    try:
        meta = json.loads((folder / "meta.json").read_text())
        quarantine = json.loads((folder / "quarantine.json").read_text())
        signals = np.load(folder / "signals.npy", mmap_mode="r", allow_pickle=False)
        if list(signals.shape) != meta["shape"] or signals.dtype != np.int16:
            raise InputError(f"signals.npy is {signals.dtype} of shape {signals.shape}")
    except Exception as error:  # numpy's parser raises almost anything on a damaged header
        raise InputError(f"{folder} is damaged ({error}); delete it, and it is converted again") from error
    return Converted(folder, signals, quarantine, meta)


def damaged_chunks(folder: Path) -> list[int]:
    """Chunks of a finished conversion whose samples differ from what was written."""
    signals, journal = load(folder).signals, _read_journal(folder)
    chunks = range(-(-len(signals) // CHUNK))
    return [chunk for chunk in chunks if chunk not in journal or _digest(signals, chunk) != journal[chunk]["sha256"]]


def convert(source: Path, parent: Path, sampling_rate: int, table: pd.DataFrame) -> Converted:
    """Converts the records of `table` unless that has been done; tries those in quarantine again.

    Args:
        source: folder of the data set; only read.
        parent: where the conversion's folder is created.
        sampling_rate: 100 or 500 Hz.
        table: of `files.read_database`.

    Raises:
        FileNotFoundError: the source has no records of this sampling rate.
        OSError: `parent` cannot be written or the disk is full; says what to do.
        ValueError: a finished conversion is damaged.
    """
    folder = location(source, parent, sampling_rate)
    if folder.is_dir() and not load(folder).quarantine:
        return load(folder)
    records = source / f"records{sampling_rate}"
    if not records.is_dir():
        found = f"a link to {records.readlink()}, which is not there" if records.is_symlink() else "no such folder"
        raise MissingFileError(
            f"expected PTB-XL's records at {sampling_rate} Hz in {records}, got {found}; put them there, or choose the "
            "other --data.sampling_rate, 100 or 500"
        )
    size = len(table) * SECONDS * sampling_rate * len(LEADS) * 2 // 2**20
    with remedies("PTB-XL", parent, size), locked(parent):
        work = folder.with_name(f".{folder.name}.unfinished")
        if folder.is_dir():
            if not (healed := _healed(load(folder), source, sampling_rate)):
                return load(folder)
            _reopen(folder, work, healed)
        _build(work, source, sampling_rate, table)
        os.rename(work, folder)
    return load(folder)


def _build(work: Path, source: Path, sampling_rate: int, table: pd.DataFrame) -> None:
    shape = (len(table), SECONDS * sampling_rate, len(LEADS))
    names = table[files.FILENAME[sampling_rate]].astype(str).tolist()
    work.mkdir(exist_ok=True)
    start = _allocate(work / "signals.npy", shape)
    journal = _trusted(work)
    chunks = range(-(-len(names) // CHUNK))
    row_bytes = 2 * shape[1] * shape[2]
    with (
        (work / "signals.npy").open("r+b") as signals,
        (work / "journal.jsonl").open("w") as log,
        tqdm(total=len(names), desc=f"converting PTB-XL, {sampling_rate} Hz", unit="record", disable=None) as bar,
    ):

        def note(entry: dict[str, Any]) -> None:
            journal[entry["chunk"]] = entry
            log.write(json.dumps(entry) + "\n")
            log.flush()
            bar.update(entry["records"])

        def work_on(chunk: int) -> dict[str, Any]:
            rows, entry = _read_chunk(source, names, chunk, sampling_rate)
            _write_at(signals.fileno(), rows, start + chunk * CHUNK * row_bytes)
            return entry

        for entry in list(journal.values()):
            note(entry)
        pool = ThreadPoolExecutor(THREADS)
        try:
            for entry in pool.map(work_on, [chunk for chunk in chunks if chunk not in journal]):
                note(entry)
        finally:
            pool.shutdown(cancel_futures=True)
        os.fsync(signals.fileno())
        os.fsync(log.fileno())
    entries = [journal[chunk] for chunk in chunks]
    quarantine = [
        {"ecg_id": int(table.index[int(row)]), "record": names[int(row)], "reason": reason}
        for entry in entries
        for row, reason in entry["corrupt"].items()
    ]
    _write_json(work / "quarantine.json", quarantine)
    _write_json(
        work / "meta.json",
        {
            "shape": shape,
            "sampling_rate": sampling_rate,
            "leads": LEADS,
            "digest": sha256("".join(entry["sha256"] for entry in entries).encode()).hexdigest(),
            "missing_flat_saturated_leads": np.sum([entry["leads"] for entry in entries], axis=0).tolist(),
        },
    )


def _read_chunk(source: Path, names: list[str], chunk: int, sampling_rate: int) -> tuple[Signal, dict[str, Any]]:
    mine = names[chunk * CHUNK : (chunk + 1) * CHUNK]
    rows = np.zeros((len(mine), SECONDS * sampling_rate, len(LEADS)), dtype=np.int16)
    corrupt: dict[int, str] = {}
    leads = np.zeros(3, dtype=np.int64)
    for index, name in enumerate(mine):
        try:
            record = read_record(source, name, sampling_rate)
        except CorruptRecordError as error:
            corrupt[chunk * CHUNK + index] = str(error)
        else:
            rows[index] = record.signal
            leads += [len(record.missing), len(record.flat), len(record.saturated)]
    digest = sha256(rows.data).hexdigest()
    return rows, {"chunk": chunk, "records": len(mine), "sha256": digest, "leads": leads.tolist(), "corrupt": corrupt}


def _allocate(path: Path, shape: tuple[int, ...]) -> int:
    """Creates signals.npy in full size, if it is not there, so that a full disk is noticed before hours of work.

    Returns:
        Offset of the samples.
    """
    header = {"descr": "<i2", "fortran_order": False, "shape": shape}
    with path.open("r+b" if path.exists() else "w+b") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.flush()
        os.posix_fallocate(file.fileno(), 0, start + 2 * int(np.prod(shape)))
    return start


def _write_at(descriptor: int, rows: Signal, offset: int) -> None:
    # Not through a memory map, which on a full disk ends in a bus error instead of an exception.
    content = memoryview(rows.tobytes())
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def _trusted(work: Path) -> dict[int, dict[str, Any]]:
    """Chunks that an interrupted conversion has finished."""
    signals = np.load(work / "signals.npy", mmap_mode="r", allow_pickle=False)
    return {chunk: entry for chunk, entry in _read_journal(work).items() if _digest(signals, chunk) == entry["sha256"]}


def _read_journal(folder: Path) -> dict[int, dict[str, Any]]:
    path = folder / "journal.jsonl"
    journal = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:  # the line that a killed process was writing
            continue
        journal[int(entry["chunk"])] = entry
    return journal


def _digest(signals: Signal, chunk: int) -> str:
    return sha256(np.ascontiguousarray(signals[chunk * CHUNK : (chunk + 1) * CHUNK]).data).hexdigest()


def _healed(converted: Converted, source: Path, sampling_rate: int) -> set[int]:
    """Chunks with a record in quarantine that can be read by now."""
    rows = {int(row): chunk for chunk, entry in _read_journal(converted.folder).items() for row in entry["corrupt"]}
    healed = set()
    for (_, chunk), entry in zip(sorted(rows.items()), converted.quarantine, strict=True):
        try:
            read_record(source, entry["record"], sampling_rate)
        except CorruptRecordError:
            continue
        healed.add(chunk)
    return healed


def _reopen(folder: Path, work: Path, chunks: set[int]) -> None:
    """Turns a finished conversion into an unfinished one without `chunks`."""
    kept = [entry for chunk, entry in _read_journal(folder).items() if chunk not in chunks]
    os.rename(folder, work)
    unfinished = work / ".journal.unfinished"
    unfinished.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    os.replace(unfinished, work / "journal.jsonl")


def _write_json(path: Path, content: Mapping[str, Any] | list[dict[str, Any]]) -> None:
    with path.open("w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
