"""Conversion of PTB-XL's records to a memory map, after which loading reads no record.

    <folder>/signals.npy   (records, L, 12) int16, 1000 units per mV, in the order of ptbxl_database.csv and `LEADS`
    <folder>/meta.json     counts, digests, and the records that could not be read, with the reason; their rows are zero

It is written to a hidden folder and renamed, so that it is complete or absent.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from datamodules.disk import locked, remedies, written_whole
from datamodules.ptbxl import files
from datamodules.ptbxl.errors import CorruptRecordError
from datamodules.ptbxl.leads import LEADS
from datamodules.ptbxl.record import SECONDS, Record, Signal, read_record
from msssm.errors import InputError, MissingFileError

FORMAT_VERSION = 2  # part of the key: raise it when the conversion of the same files changes
CHUNK = 128  # records
THREADS = 8  # reading waits for the disk more than it computes


@dataclass(frozen=True)
class Converted:
    """Finished conversion: memory-mapped `signals` (records, L, 12) int16, and the findings in them."""

    folder: Path
    signals: Signal
    meta: dict[str, Any]

    @property
    def quarantine(self) -> list[dict[str, Any]]:
        """Records that could not be read, each with `ecg_id`, `record` and `reason`."""
        corrupt: list[dict[str, Any]] = self.meta["quarantine"]
        return corrupt


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
        signals = np.load(folder / "signals.npy", mmap_mode="r", allow_pickle=False)
        if list(signals.shape) != meta["shape"] or signals.dtype != np.int16:
            raise InputError(f"signals.npy is {signals.dtype} of shape {signals.shape}")
    except Exception as error:  # numpy's parser raises almost anything on a damaged header
        raise InputError(f"{folder} is damaged ({error}); delete it, and it is converted again") from error
    return Converted(folder, signals, meta)


def damaged_chunks(folder: Path) -> list[int]:
    """Chunks of a finished conversion whose samples differ from what was written."""
    converted = load(folder)
    return [
        chunk
        for chunk, digest in enumerate(converted.meta["sha256"])
        if sha256(converted.signals[chunk * CHUNK : (chunk + 1) * CHUNK].tobytes()).hexdigest() != digest
    ]


def convert(source: Path, parent: Path, sampling_rate: int, table: pd.DataFrame) -> Converted:
    """Converts the records of `table`, unless that has been done and no record in quarantine can be read by now.

    Args:
        source: folder of the data set; only read.
        parent: folder in which the conversion's folder is created.
        sampling_rate: 100 or 500 Hz.
        table: result of `files.read_database`.

    Raises:
        FileNotFoundError: the source has no records of this sampling rate.
        OSError: `parent` cannot be written or the disk is full; says what to do.
        ValueError: a finished conversion is damaged.
    """
    folder = location(source, parent, sampling_rate)
    if _is_current(folder, source, sampling_rate):
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
        if not _is_current(folder, source, sampling_rate):  # another process may have made it meanwhile
            with written_whole(folder) as unfinished:
                _write(unfinished, source, sampling_rate, table)
    return load(folder)


def _is_current(folder: Path, source: Path, sampling_rate: int) -> bool:
    """Whether there is a conversion, and what it could not read still cannot be read."""
    if not folder.is_dir():
        return False
    names = [str(entry["record"]) for entry in load(folder).quarantine]
    return all(isinstance(_read(name, source, sampling_rate), str) for name in names)


def _read(name: str, source: Path, sampling_rate: int) -> Record | str:
    """A record, or the reason why it cannot be used."""
    try:
        return read_record(source, name, sampling_rate)
    except CorruptRecordError as error:
        return str(error)


def _write(folder: Path, source: Path, sampling_rate: int, table: pd.DataFrame) -> None:
    names = table[files.FILENAME[sampling_rate]].astype(str).tolist()
    shape = (len(names), SECONDS * sampling_rate, len(LEADS))
    digests: list[str] = []
    quarantine = []
    odd_leads = np.zeros(3, dtype=np.int64)
    title = f"converting PTB-XL, {sampling_rate} Hz"
    with (
        ThreadPoolExecutor(THREADS) as pool,
        (folder / "signals.npy").open("wb") as file,
        tqdm(total=len(names), desc=title, unit="record", disable=None) as bar,
    ):
        # Not through a memory map, which on a full disk ends in a bus error instead of an exception.
        np.lib.format.write_array_header_1_0(file, {"descr": "<i2", "fortran_order": False, "shape": shape})
        for start in range(0, len(names), CHUNK):
            chunk = names[start : start + CHUNK]
            rows = np.zeros((len(chunk), *shape[1:]), dtype="<i2")
            results = pool.map(partial(_read, source=source, sampling_rate=sampling_rate), chunk)
            for index, result in enumerate(results):
                if isinstance(result, str):
                    ecg_id = int(table.index[start + index])
                    quarantine.append({"ecg_id": ecg_id, "record": chunk[index], "reason": result})
                else:
                    rows[index] = result.signal
                    odd_leads += [len(result.missing), len(result.flat), len(result.saturated)]
            content = rows.tobytes()
            file.write(content)
            digests.append(sha256(content).hexdigest())
            bar.update(len(chunk))
    meta = {
        "shape": shape,
        "sampling_rate": sampling_rate,
        "leads": LEADS,
        "digest": sha256("".join(digests).encode()).hexdigest(),
        "missing_flat_saturated_leads": odd_leads.tolist(),
        "quarantine": quarantine,
        "sha256": digests,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
