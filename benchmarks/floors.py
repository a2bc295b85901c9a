"""What this machine could do at best: the arithmetic and the bandwidth floor of a selective scan, both measured.

The arithmetic floor counts, per state step (one row, step, band, channel and state), the exponential a polynomial:

    forward           a = 2^(delta A log2 e)         1 exponential: 10 vector operations
                      h = a h + (delta u) B          1 multiplication, 1 fused multiply-add
                      y += C h                       1 fused multiply-add
    backward          a and h again                  1 exponential, 1 multiplication, 1 fused multiply-add
                      g = carried + C grad_y         1 fused multiply-add
                      carried = g a                  1 multiplication
                      slope = carried h_{t-1}        1 multiplication
                      grad_C += grad_y h             1 fused multiply-add
                      grad_B += g (delta u)          1 fused multiply-add
                      grad_(delta u) += g B          1 fused multiply-add
                      grad_delta += slope A          1 fused multiply-add
                      grad_A += slope delta          1 fused multiply-add

that is 13 operations forward and 33 forward + backward. `floors.cpp` runs exactly these on all threads, on data that
stays in the first-level cache. On a GPU no arithmetic floor is measured.

The bandwidth floor is the bytes that must be read or written once, over the measured bandwidth of a large copy. It
does not bind where the tensors of a case fit in a cache.
"""

import ctypes
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

STATES = STEPS = 16


class Floors(NamedTuple):
    """Of one machine; None where nothing could be measured, with the reason in `note`."""

    forward_steps_per_s: float | None
    backward_steps_per_s: float | None
    bytes_per_s: float
    note: str = ""

    def arithmetic_ms(self, elements: int, backward: bool) -> float | None:
        """Least time of `elements` state steps."""
        if self.forward_steps_per_s is None or self.backward_steps_per_s is None:
            return None
        return 1e3 * (elements / self.forward_steps_per_s + (elements / self.backward_steps_per_s if backward else 0))

    def drift(self, later: "Floors") -> float:
        """Largest relative difference between two measurements: 0 on a machine with nothing else to do."""
        pairs = [(now, then) for now, then in zip(self[:3], later[:3], strict=True) if now and then]
        return max(max(a, b) / min(a, b) - 1 for a, b in pairs)

    def best(self, other: "Floors") -> "Floors":
        """The faster of two measurements of a machine: a floor is what it can do, not what it did while disturbed."""
        pairs = zip(self, other, strict=True)
        return Floors(*(max(a, b) if isinstance(a, float) and isinstance(b, float) else a for a, b in pairs))  # type: ignore

    def bandwidth_ms(self, moved: int) -> float:
        """Least time to move so many bytes."""
        return 1e3 * moved / self.bytes_per_s


def measure_floors(device: torch.device) -> Floors:
    """Takes about two seconds."""
    bandwidth = _copy_bandwidth(device)
    if device.type != "cpu":
        return Floors(None, None, bandwidth, f"arithmetic floor unknown: none is measured on {device.type}")
    library = compile_floors()
    if library is None:
        return Floors(None, None, bandwidth, "arithmetic floor unknown: no C++ compiler (g++ or clang++)")
    return Floors(_steps_per_s(library, backward=False), _steps_per_s(library, backward=True), bandwidth)


def compile_floors() -> ctypes.CDLL | None:
    """`floors.cpp` for this processor; None without a compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "floors.so"
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-std=c++17", "-shared", "-fPIC"]
        source = Path(__file__).with_suffix(".cpp")
        subprocess.run([compiler, *flags, "-pthread", str(source), "-o", str(output)], check=True)
        return ctypes.CDLL(str(output))


def sample() -> list[Tensor]:
    """delta, delta u, grad_y (16,); A (16,); B, C (16, 16)."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    delta = torch.rand(STEPS, generator=generator) * 0.1
    matrices = normal(STEPS, STATES), normal(STEPS, STATES)
    return [delta, normal(STEPS), normal(STEPS), -torch.arange(1.0, STATES + 1), *matrices]


def pointers(tensors: list[Tensor]) -> list[Any]:
    return [ctypes.c_void_p(x.data_ptr()) for x in tensors]


def _steps_per_s(library: ctypes.CDLL, *, backward: bool) -> float:
    """State steps of all threads."""
    threads, data = torch.get_num_threads(), sample()
    passes, best = 200_000, float("inf")
    for _ in range(4):
        start = time.perf_counter()
        library.floor_work(ctypes.c_int64(passes), threads, int(backward), *pointers(data))
        best = min(best, time.perf_counter() - start)
    return passes * threads * STATES * STEPS * int(library.floor_lanes()) / best


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a copy of 256 MiB."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() * source.element_size() / best
