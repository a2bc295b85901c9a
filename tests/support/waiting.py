"""Waiting for what another process does."""

import subprocess
import time
from pathlib import Path


def wait_for(path: Path, process: "subprocess.Popen[str] | None" = None, seconds: float = 60) -> None:
    """Returns once there is such a file; fails if it takes longer, or if the process that should write it has ended."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, path
        time.sleep(0.01)
