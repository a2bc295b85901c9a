"""Download of PTB-XL from PhysioNet: in parallel, resumable, every file compared with its SHA-256.

The `physionet` package does the same one file at a time, but conflicts with the versions in constraints.txt: it needs
boto3, which needs python-dateutil < 3.
"""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from datamodules.disk import leaves_its_folder
from datamodules.ptbxl import files
from datamodules.transfer import transfer
from msssm.errors import InputError, StorageError

URL = "https://physionet.org/files/ptb-xl/{version}/"
VERSIONS = ("1.0.3", "1.0.1")
THREADS = 8
TRIES = 5
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)  # no second try helps
_PAUSE = 1.0  # seconds; times 2, 4, 8, 16 between tries


def download(folder: Path, sampling_rate: int, version: str = "1.0.3", url: str = URL) -> None:
    """Downloads tables and the records of one sampling rate into `folder`; complete files are kept.

    Args:
        folder: Folder of the data set.
        sampling_rate: 100 or 500 Hz.
        version: Version of the release.
        url: Address of its files, with `{version}`.

    Raises:
        OSError: a file could not be downloaded in five tries, or its SHA-256 is not the release's.
        ValueError: the version is unknown.
    """
    if version not in VERSIONS:
        raise InputError(f"asked to download PTB-XL {version!r}; choose one of {', '.join(VERSIONS)}")
    base = url.format(version=version)
    folder.mkdir(parents=True, exist_ok=True)
    _fetch(base + files.DIGESTS, folder / files.DIGESTS, None)
    wanted = {
        name: digest
        for name, digest in files.read_digests(folder).items()
        if not leaves_its_folder(name)
        and (len(parts := PurePosixPath(name).parts) == 1 or parts[0] == f"records{sampling_rate}")
    }
    pool = ThreadPoolExecutor(THREADS)
    try:
        jobs = [pool.submit(_fetch, base + name, folder / name, digest) for name, digest in wanted.items()]
        for job in tqdm(jobs, desc=f"downloading PTB-XL {version}", unit="file", disable=None):
            job.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch(url: str, target: Path, digest: str | None) -> None:
    if digest is not None and target.is_file() and _sha256(target) == digest:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    if digest is None:
        part.unlink(missing_ok=True)  # without a digest, a stale part cannot be recognised
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(min(2**attempt, 30) * _PAUSE)
        try:
            transfer(url, part)
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            reason = str(error) or type(error).__name__
            continue
        if digest is None or _sha256(part) == digest:
            os.replace(part, target)
            return
        part.unlink()
        reason = "its SHA-256 is not that of SHA256SUMS.txt"
    raise StorageError(
        f"could not download {url} in {TRIES} tries: {reason}; run it again to resume, or name a folder as source"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
