"""The process of the `msssm` command: what is set before torch is loaded."""

import json
import os
import re
import subprocess
import sys

import pytest

SHOW = """
import json, os, sys
from tasks.process import settle
settle()
print(json.dumps([os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules]))
"""


def shown(before: str = "", **environment: str) -> list[object]:
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, "-c", before + SHOW]
    result: list[object] = json.loads(subprocess.check_output(command, env=clean | environment))
    return result


def test_idle_threads_sleep_unless_the_user_wants_otherwise() -> None:
    """And it does not cost the seconds of loading torch."""
    assert shown() == ["10000", False]
    assert shown(OMP_WAIT_POLICY="ACTIVE") == [None, False]
    assert shown(GOMP_SPINCOUNT="7") == ["7", False]


def test_a_process_that_has_loaded_torch_is_left_alone() -> None:
    assert shown(before="import sys; sys.modules['torch'] = None") == [None, True]


def glibc() -> tuple[int, ...]:
    """(2, 36), or nothing where the C library is another."""
    version = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
    return tuple(map(int, re.findall(r"\d+", version or "")))


@pytest.mark.parametrize(
    "mebibytes", [24, pytest.param(100, marks=pytest.mark.skipif(glibc() < (2, 36), reason="glibc limits it to 32"))]
)
@pytest.mark.skipif(not glibc(), reason="of glibc")
def test_freed_memory_stays(mebibytes: int) -> None:
    """A block that is allocated and freed again and again costs its page faults once."""
    code = f"""
import resource
from tasks.process import settle
settle()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    x = bytearray({mebibytes} << 20)
    for i in range(0, len(x), 4096):
        x[i] = 1
work()
start = faults()
for _ in range(5):
    work()
print(faults() - start)
"""
    kept = int(subprocess.check_output([sys.executable, "-c", code]))
    fresh = int(subprocess.check_output([sys.executable, "-c", code.replace("settle()\n", "\n")]))
    assert kept < 1000 < fresh
