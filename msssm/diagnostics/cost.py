"""Memory and time of a layer as the number of bands and the length grow, and the power law through them."""

import ctypes
import gc
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from msssm.errors import InputError


class Cost(NamedTuple):
    """Of one call."""

    seconds: float
    bytes: int


class PowerLaw(NamedTuple):
    """value = factor * bands^bands_exponent * length^length_exponent.

    Attributes:
        residual: largest relative deviation of a measured value from the law.
    """

    factor: float
    bands_exponent: float
    length_exponent: float
    residual: float

    def __call__(self, bands: float, length: float) -> float:
        return float(self.factor * bands**self.bands_exponent * length**self.length_exponent)


def measure_cost(run: Callable[[], object], device: torch.device, repeats: int = 3) -> Cost:
    """Shortest time and median peak memory of `run`, above what stood before, after one call that does not count.

    On a CPU memory is the high-water mark of the process' resident pages (Linux), after the free ones have been given
    back; elsewhere than on Linux it is 0. On a GPU it is that of torch's allocator.
    """
    run()
    seconds = min(_timed(run, device) for _ in range(repeats))
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return Cost(seconds, torch.cuda.max_memory_allocated(device) - before)
    if sys.platform != "linux":
        return Cost(seconds, 0)
    gc.collect(1)  # what calls before have just left in cycles; all of a large process takes longer than most calls
    # The median, since other threads of the process may take or give back pages meanwhile.
    return Cost(seconds, int(statistics.median(_peak(run) for _ in range(repeats))))


def measure_kept(forward: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that stay allocated after `forward` while its result lives: what its backward needs, and that.

    Counted by torch's allocator, to the byte; nothing else of the process enters.
    """
    forward()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        result = forward()
        return torch.cuda.memory_allocated(device) - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        result = forward()  # noqa: F841
    return sum(event.self_cpu_memory_usage for event in profile.key_averages())


def _peak(run: Callable[[], object]) -> int:
    ctypes.CDLL(None).malloc_trim(0)  # else a peak is served from pages that earlier calls left behind
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is resident now
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _status(field: str) -> int:
    """Bytes, from /proc."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def fit_power_law(bands: Sequence[int], lengths: Sequence[int], values: Sequence[float]) -> PowerLaw:
    """Least squares in the logarithms over points (bands, length, value).

    Raises:
        ValueError: points that do not determine the law, or a value that is not positive.
    """
    if min(values, default=0) <= 0:
        raise InputError(f"a power law needs positive values, got {list(values)}")
    rows = [[1.0, math.log(b), math.log(n)] for b, n in zip(bands, lengths, strict=True)]
    design = torch.tensor(rows, dtype=torch.float64)
    target = torch.tensor(values, dtype=torch.float64).log()
    if torch.linalg.matrix_rank(design) < 3:
        raise InputError("a power law in bands and length needs two of each, and three points")
    solution: Tensor = torch.linalg.lstsq(design, target).solution
    residual = (target - design @ solution).abs().max().expm1().item()
    constant, in_bands, in_length = solution.tolist()
    return PowerLaw(math.exp(constant), in_bands, in_length, residual)
