"""Download of one file over HTTP that resumes an earlier attempt."""

import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

TIMEOUT = 60  # seconds


def transfer(url: str, part: Path) -> None:
    """Appends the missing rest to `part`; a server that ignores the range sends the whole file again.

    Raises:
        OSError: the server does not answer, or the disk fails.
        HTTPException: the connection ends early; the received part is kept.
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
        if error.code != 416:  # the part is complete, or too long, as the digest will show
            raise
