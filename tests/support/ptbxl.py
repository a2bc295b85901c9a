"""A small generated PTB-XL for the tests, made once per process and copied."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from datamodules.ptbxl import generate

COUNT = 200


@cache
def _original() -> Path:
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return generate(root, COUNT, seed=3)


def copy_to(root: Path) -> Path:
    """The data set as `<root>/ptbxl`."""
    return shutil.copytree(_original(), root / "ptbxl")
