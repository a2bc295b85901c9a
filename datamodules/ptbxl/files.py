"""PTB-XL's files as PhysioNet publishes them (v1.0.1 and v1.0.3): their location, and the two tables.

ptbxl_database.csv   scp_statements.csv   SHA256SUMS.txt
records100/00000/00001_lr.{hea,dat}       records500/00000/00001_hr.{hea,dat}
"""

import ast
import os
import shutil
import zipfile
from pathlib import Path, PurePosixPath

import pandas as pd
from tqdm.auto import tqdm

from datamodules.disk import leaves_its_folder
from msssm.errors import InputError, MissingFileError

DATABASE, STATEMENTS, DIGESTS, SYNTHETIC = "ptbxl_database.csv", "scp_statements.csv", "SHA256SUMS.txt", "SYNTHETIC"
FILENAME = {100: "filename_lr", 500: "filename_hr"}
TRAIN_FOLDS, VAL_FOLD, TEST_FOLD = range(1, 9), 9, 10
_NEEDED = ("ecg_id", "patient_id", "scp_codes", "strat_fold", *FILENAME.values())


def find(folder: Path) -> Path:
    """Locates the folder with ptbxl_database.csv: `folder`, or one in it, as archives unpack to.

    Raises:
        FileNotFoundError: there is none, or several.
    """
    found = [path.parent for path in (folder / DATABASE, *sorted(folder.glob(f"[!.]*/{DATABASE}"))) if path.is_file()]
    if len(found) == 1 or (found and found[0] == folder):
        return found[0]
    raise MissingFileError(
        f"expected PTB-XL with its {DATABASE} in {folder}, got {len(found) or 'no'} such file"
        f"{'s' if len(found) > 1 else ''}; unpack the data set there, name its folder or zip as source, "
        "or generate one: msssm data generate ptbxl"
    )


def unpack(archive: Path, folder: Path, sampling_rate: int) -> None:
    """Unpacks tables and records of one sampling rate; files of the right size are kept.

    Raises:
        FileNotFoundError: there is no such archive.
        ValueError: it is no complete zip, or does not contain PTB-XL.
    """
    if not archive.is_file():
        raise MissingFileError(f"asked for PTB-XL from {archive}, got no such file; name a folder or a zip as source")
    try:
        with zipfile.ZipFile(archive) as file:
            tables = [PurePosixPath(name) for name in file.namelist() if PurePosixPath(name).name == DATABASE]
            if len(tables) != 1:
                raise InputError(f"{archive} does not hold PTB-XL: {len(tables)} files called {DATABASE}")
            for member in tqdm(file.infolist(), desc=f"unpacking {archive.name}", unit="file", disable=None):
                path = PurePosixPath(member.filename)
                if member.is_dir() or leaves_its_folder(member.filename) or not path.is_relative_to(tables[0].parent):
                    continue
                inside = path.relative_to(tables[0].parent)
                target = folder / inside
                wanted = len(inside.parts) == 1 or inside.parts[0] == f"records{sampling_rate}"
                if wanted and not (target.is_file() and target.stat().st_size == member.file_size):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    unfinished = target.with_name(f".{target.name}.unfinished")
                    with file.open(member) as source, unfinished.open("wb") as copy:
                        shutil.copyfileobj(source, copy)  # compares the archive's CRC at the end
                    os.replace(unfinished, target)
    except (zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{archive} is damaged ({error}); download it again") from error


def read_database(folder: Path) -> pd.DataFrame:
    """Reads ptbxl_database.csv, indexed by ecg_id, scp_codes as dictionaries and patient_id as integers.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not PTB-XL's table; names column or record.
    """
    table = _read(folder / DATABASE)
    fault = ""
    if missing := [column for column in _NEEDED if column not in table.columns]:
        fault = f"has no column {', '.join(missing)}"
    elif table.empty:
        fault = "has no records"
    elif not table["ecg_id"].is_unique:
        fault = f"has ecg_id {table['ecg_id'][table['ecg_id'].duplicated()].iloc[0]} more than once"
    elif not table["strat_fold"].isin(range(1, 11)).all() or table["patient_id"].isna().any():
        fault = "has a record without a patient_id or a strat_fold of 1..10"
    if fault:
        raise InputError(f"{folder / DATABASE} {fault}; take the file that PhysioNet publishes")
    table = table.set_index("ecg_id")
    table["patient_id"] = table["patient_id"].astype(int)  # written as 15709.0
    codes = {ecg_id: _codes(text, ecg_id) for ecg_id, text in table["scp_codes"].items()}
    table["scp_codes"] = pd.Series(codes)
    return table


def read_statements(folder: Path) -> pd.DataFrame:
    """Reads scp_statements.csv, indexed by code.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is empty.
    """
    table = _read(folder / STATEMENTS)
    if table.empty:
        raise InputError(f"{folder / STATEMENTS} has no rows; take the file that PhysioNet publishes")
    return table.set_index(table.columns[0])


def read_digests(folder: Path) -> dict[str, str]:
    """Reads SHA256SUMS.txt: path -> sha256; empty if the file does not exist."""
    path = folder / DIGESTS
    if not path.is_file():
        return {}
    pairs = (line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
    return {name.strip().removeprefix("./"): digest for digest, name in pairs}


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise MissingFileError(f"expected {path}, got no such file; it is part of PTB-XL as PhysioNet publishes it")
    try:
        return pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a table ({error}); take the file that PhysioNet publishes") from error


def _codes(text: object, ecg_id: object) -> dict[str, float]:
    try:
        codes = ast.literal_eval(str(text))
        return {str(code): float(likelihood) for code, likelihood in codes.items()}
    except (ValueError, SyntaxError, AttributeError, TypeError) as error:
        raise InputError(
            f"{DATABASE}, ecg_id {ecg_id}: expected scp_codes like {{'NORM': 100.0}}, got {str(text)[:60]!r}"
        ) from error
