"""The GPU kernels in Triton's interpreter, on the CPU: interpreted_scan.py, in a process of its own."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(platform.system() != "Linux", reason="Triton exists for Linux alone")
def test_scans_in_the_interpreter() -> None:
    cases = Path(__file__).parents[1].joinpath("support/interpreted_scan.py")
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", str(cases)]
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=cases.parent.parent, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout
