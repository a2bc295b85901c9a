"""Memory and time of a layer as a function of bands and length, and the power law fitted to them."""

import ctypes
import gc
import math
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from msssm.errors import InputError
from msssm.scan.triton.selfcheck import milliseconds


class Cost(NamedTuple):
    """Time and peak memory of one call."""

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
        """Value that the law predicts."""
        return float(self.factor * bands**self.bands_exponent * length**self.length_exponent)


def measure_cost(run: Callable[[], object], device: torch.device, repeats: int = 3) -> Cost:
    """Measures the shortest time and the median peak memory of `run` above the memory before it, after a warm-up call.

    On a GPU, memory is the peak of torch's allocator. On a CPU it is the high-water mark of the process's resident
    pages, after free pages have been returned to the system; outside Linux it is 0.
    """
    run()
    seconds = milliseconds(run, device, repeats) / 1e3
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return Cost(seconds, torch.cuda.max_memory_allocated(device) - before)
    if sys.platform != "linux":
        return Cost(seconds, 0)
    gc.collect(1)  # recent cycles only: a full collection in a large process takes longer than most calls
    # The median, since other threads of the process may allocate or free pages meanwhile.
    return Cost(seconds, int(statistics.median(_peak(run) for _ in range(repeats))))


def measure_kept(forward: Callable[[], object], device: torch.device) -> int:
    """Counts the bytes of tensors that `forward` leaves allocated: its result and what the backward needs.

    The count is that of torch's allocator, exact to the byte and independent of the rest of the process.
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
    ctypes.CDLL(None).malloc_trim(0)  # else pages that earlier calls left resident hide a peak
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def fit_power_law(bands: Sequence[int], lengths: Sequence[int], values: Sequence[float]) -> PowerLaw:
    """Fits a power law to points (bands, length, value), by least squares of the logarithms.

    Raises:
        ValueError: the points do not determine the law, or a value is not positive.
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
