"""Peak memory of a forward and a backward, beyond their inputs and the gradients of these."""

import re
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.compare import Case, Prepare
from benchmarks.fresh import in_fresh_process

MIB = 2**20


def peak_mib(
    prepare: Prepare, method: str, size: tuple[int, ...], dtype: torch.dtype, *, device: torch.device
) -> float:
    """MiB above the inputs and their gradients, during one forward + backward.

    On a CPU the high-water mark of a fresh process' resident memory (Linux); on a GPU of torch's allocator.
    """
    return in_fresh_process(_measure, prepare, method, size, dtype, device)


def _measure(prepare: Prepare, method: str, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> float:
    # What is loaded or created at a first call is not the method's own.
    _forward_backward(prepare(method, (1, min(64, size[1]), *size[2:]), dtype))
    case = prepare(method, size, dtype)
    gradients = sum(x.numel() * x.element_size() for x in case.leaves)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _forward_backward(case)
        return (torch.cuda.max_memory_allocated(device) - before - gradients) / MIB
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is resident now
    before = _status("VmRSS")
    _forward_backward(case)
    return (_status("VmHWM") - before - gradients) / MIB


def _forward_backward(case: Case) -> list[Tensor]:
    y = case.run()
    return list(torch.autograd.grad(y.sum(), case.leaves))


def _status(field: str) -> int:
    """Bytes, from /proc."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
