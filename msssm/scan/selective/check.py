"""The check of the Triton kernels on a device, once per process: are they right there?

At the first use, outputs and gradients of one small, odd shape are compared with the sequential reference in float64.
Kernels that are wrong, or do not compile, are not used.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import torch
from torch import Tensor

from msssm.scan.selective.operands import Operands
from msssm.scan.selective.torch import sequential_scan

# Largest errors relative to the largest value.
OUTPUT, GRADIENT = 2e-5, 2e-4
RESULTS = ("y", "the last state")


_known: dict[torch.device, str | None] = {}


def fault(device: torch.device) -> str | None:
    """What is wrong with the kernels on a device, and what to do; None if they are right."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if device in _known:
        return _known[device]
    # Neither can a captured graph contain the check, nor can a backward wait for its thread.
    inside_backward = torch._C._current_graph_task_id() != -1
    if device.type == "cuda" and (inside_backward or torch.cuda.is_current_stream_capturing()):
        return f"is not checked yet on {device}, and cannot be in a CUDA graph or a backward: run the model once before"
    # A new thread inherits neither grad or inference mode nor autocast, default device, transforms or tracing.
    with ThreadPoolExecutor(max_workers=1) as thread:
        found = thread.submit(_compare, device).result()
    report = "report it with the output of `msssm doctor`"
    _known[device] = None if found is None else f"failed its check on {device}: {found}; {report}"
    return _known[device]


def _compare(device: torch.device) -> str | None:
    from msssm.scan.selective import triton

    given = sample()
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        try:
            for discretization in ("zoh", "euler"):
                expected = _results(given, discretization, torch.float64, torch.device("cpu"), sequential_scan)
                actual = _results(given, discretization, torch.float32, device, triton.scan)
                for name, truth in expected.items():
                    error = relative_error(actual[name], truth)
                    allowed = OUTPUT if name in RESULTS else GRADIENT
                    if error > allowed:
                        return f"{name} is off by {error:.1e} of its largest value, {allowed:.1e} is allowed"
        except Exception as error:  # of compilation or of a launch
            lines = str(error).strip().splitlines()
            return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
    return None


def sample() -> Operands:
    """Operands with several tiles, channels and states that do not fill a block, lengths and a state."""
    batch, length, M, D, N, heads = 3, 70, 1, 36, 3, 2
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device="cpu", dtype=torch.float32)

    lengths = torch.tensor([length, length // 2, 0], device="cpu")
    varying = [normal(batch, length, M, size) for size in (D, D, N, N, heads)]
    for x in varying:
        for row, end in enumerate(lengths.tolist()):
            x[row, end:] = torch.nan
    u, delta, B, C, mix = varying
    A, state = -0.1 - normal(M, D, N).abs(), normal(batch, M, D, N)
    return Operands(u, delta - 2, A, B, C, mix, normal(M, D), None, normal(M, D), lengths, state)


def _results(
    given: Operands, discretization: str, dtype: torch.dtype, device: torch.device, scan: object
) -> dict[str, Tensor]:
    """Results and gradients by name."""
    leaves = {
        name: x.detach().to(device, dtype).requires_grad_()
        for name, x in given._asdict().items()
        if x is not None and name != "lengths"
    }
    assert given.lengths is not None
    operands = given._replace(**leaves, lengths=given.lengths.to(device))
    results = scan(operands, discretization)  # type: ignore[operator]
    grads = torch.autograd.grad([x.square().sum() for x in results], list(leaves.values()))
    named = {f"the gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return dict(zip(RESULTS, (x.detach() for x in results), strict=True)) | named


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Error max |actual - expected| / max |expected|; infinite if a value is not finite."""
    difference = (actual.to(expected) - expected).abs().max() / expected.abs().max()
    return float(difference.nan_to_num(torch.inf).item())
