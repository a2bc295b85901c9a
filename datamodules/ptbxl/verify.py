"""Search for missing or corrupt parts of a PTB-XL folder."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest
from pathlib import Path

from tqdm.auto import tqdm

from datamodules.disk import leaves_its_folder
from datamodules.faults import Fault
from datamodules.ptbxl import convert, files
from datamodules.ptbxl.errors import CorruptRecordError
from datamodules.ptbxl.labels import multi_hot
from datamodules.ptbxl.record import read_record
from msssm.errors import InputError


def verify(source: Path, converted: Iterable[Path] = ()) -> list[Fault]:
    """Finds all faults of a data set.

    Compares every file with SHA256SUMS.txt, reads the tables and every record of the sampling rates that are there with
    its checksums, and compares conversions with the digests stored when they were written.

    Args:
        source: folder of the data set; only read.
        converted: folders that `convert.convert` created.
    """
    faults: list[Fault] = []
    rates = [rate for rate in files.FILENAME if (source / f"records{rate}").is_dir()]
    if not rates:
        faults.append(Fault("", "records100: no such folder, nor records500", missing=True))
    try:
        table = files.read_database(source)
        multi_hot(table["scp_codes"].tolist(), "all", files.read_statements(source))
    except (OSError, InputError) as error:
        return [*faults, Fault("", str(error))]
    digests = files.read_digests(source)
    if not digests:
        text = f"{files.DIGESTS}: no such file; only the records' own checksums can be compared"
        faults.append(Fault("", text, missing=True))
    absent = tuple(f"records{rate}/" for rate in files.FILENAME if rate not in rates)
    listed = [(source, *item) for item in digests.items() if not item[0].startswith(absent)]
    records = [(source, str(name), rate) for rate in rates for name in table[files.FILENAME[rate]]]
    with ThreadPoolExecutor(convert.THREADS) as pool:
        for total, title, found in (
            (len(listed), "comparing SHA-256", pool.map(_compare, listed)),
            (len(records), "reading records", pool.map(_read, records)),
        ):
            faults += filter(None, tqdm(found, title, total, unit="file", disable=None))
    for folder in converted:
        try:
            chunks = convert.damaged_chunks(folder)
            faults += [Fault(folder.name, f"{folder.name}: chunk {chunk} is not what was written") for chunk in chunks]
        except InputError as error:
            faults.append(Fault(folder.name, str(error)))
    return faults


def _compare(item: tuple[Path, str, str]) -> Fault | None:
    source, name, digest = item
    folder = str(Path(name).parent)
    if leaves_its_folder(name):
        return Fault(folder, f"{name}: {files.DIGESTS} names a file outside the data folder")
    try:
        with (source / name).open("rb") as file:
            same = file_digest(file, "sha256").hexdigest() == digest
    except OSError as error:
        return Fault(folder, f"{name}: {error.strerror}", missing=isinstance(error, FileNotFoundError))
    return None if same else Fault(folder, f"{name}: its SHA-256 is not that of {files.DIGESTS}")


def _read(item: tuple[Path, str, int]) -> Fault | None:
    source, name, _ = item
    try:
        read_record(*item)
    except CorruptRecordError as error:
        there = all((source / f"{name}{ending}").is_file() for ending in (".hea", ".dat"))
        return Fault(str(Path(name).parent), f"{name}: {error}", missing=not there)
    return None
