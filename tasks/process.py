"""Settings of the `msssm` command's own process, before torch is loaded; the benchmarks use them too."""

import ctypes
import os
import sys

SPINS = "10000"  # tens of microseconds
# For mallopt(3): allocations up to this size come from the heap, and this much of it is kept when it is freed.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST, _LARGEST_BEFORE, _KEPT = 2**30, 32 * 2**20, 2**30  # before: what a glibc of some years ago accepts


def settle() -> None:
    """Lets idle threads soon sleep, and keeps freed memory in the process, unless the environment says otherwise.

    By default, OpenMP's idle threads spin for milliseconds, and slow other work of the cores; with
    OMP_WAIT_POLICY=PASSIVE they sleep at once, and are late for the next operator. glibc returns a training step's
    activations to the system, and in the next step requests them again, page by page.
    """
    if "torch" in sys.modules:
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler prints a line at each start and stop
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; others have none
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_THRESHOLD, _LARGEST_BEFORE)
            mallopt(_TRIM_THRESHOLD, _KEPT)
