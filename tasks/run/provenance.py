"""`metrics.json`: the measurements of a complete run and their origin. Its presence marks the run as complete."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import torch

from msssm.doctor import processor
from msssm.errors import InputError, MissingFileError

PACKAGES = ("msssm", "torch", "lightning", "torchmetrics", "numpy")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing, of which a reader sees the old version or the complete new one."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON atomically; raises ValueError for NaN and infinity."""
    with atomic_file(path) as file:
        file.write(json.dumps(content, indent=2, allow_nan=False).encode())


def read_json(path: Path) -> Any:
    """Reads a file that `write_json` wrote.

    Raises:
        InputError: there is no such file, or it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise MissingFileError(f"expected {path}, got no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); make it again") from error


def provenance() -> dict[str, Any]:
    """Commit, state of the checkout, versions and hardware of this process."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", ":(top)")),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "hardware": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def commits(metrics: dict[str, Any], digits: int = 40) -> list[str]:
    """Commits that trained a run, in their order, from its metrics.json; each says whether the checkout was changed."""
    origins = [*metrics.get("earlier", []), metrics]
    named = [
        (origin["commit"] or "no commit")[:digits] + (" with uncommitted changes" if origin["dirty"] else "")
        for origin in origins
    ]
    return list(dict.fromkeys(named))


def _git(*args: str) -> str | None:
    """Output of a git command in the checkout of this file; None if there is none."""
    command = ["git", "-C", str(Path(__file__).parent), *args]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
