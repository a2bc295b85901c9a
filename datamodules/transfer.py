"""One file over HTTP, going on where an earlier attempt stopped."""

import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

TIMEOUT = 60  # seconds


def transfer(url: str, part: Path) -> None:
    """Appends what is missing of `part`; a server that ignores the range sends everything.

    Raises:
        OSError: if there is no answer or no disk.
        HTTPException: if the connection ends early; what came is kept.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            appending = response.status == 206
            expected = response.length
            with part.open("ab" if appending else "wb") as file:
                received = 0
                while block := response.read(1 << 16):
                    received += file.write(block)
            if expected is not None and received != expected:
                raise HTTPException(f"connection closed after {received} of {expected} bytes")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the part is whole, or too long, which the digest tells
            raise
