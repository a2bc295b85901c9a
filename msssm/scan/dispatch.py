"""Choice of the backend that runs an operator: the requested one, or the fastest for the given tensors."""

import os
import warnings
from functools import cache
from typing import Literal

import torch

from msssm.errors import InputError
from msssm.scan import triton
from msssm.scan.cpu.library import library
from msssm.scan.triton.verdict import Kernels, settle
from msssm.transforms import transformed

Backend = Literal["auto", "reference", "torch", "cpu", "triton"]
BACKENDS = ("auto", "reference", "torch", "cpu", "triton")

_COMPILER = "install a C++ compiler (g++ or clang++), then msssm again"
_SLOWER = "msssm scans with plain torch, several times slower than it could"


def choose(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    plain: Backend = "torch",
    *,
    kernels: Kernels | None = None,
) -> str:
    """Chooses the backend for tensors of this kind.

    Args:
        backend: the requested one.
        device: of the tensors.
        dtype: of the computation.
        plain: the fastest one made of torch operators alone, which supports every transform of `torch.func`.
        kernels: the operator's Triton kernels; None if it has none, and runs in plain torch on a GPU.

    Raises:
        ValueError: the backend is unknown, or cannot run here.
    """
    if backend == "auto":
        backend = os.environ.get("MSSSM_BACKEND", "auto")
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if transformed():
        if backend in ("auto", "reference", plain):
            return plain if backend == "auto" else backend
        raise InputError(
            f"backend {backend!r} has a gradient, but no rules for transforms of torch.func or forward mode: "
            f"use 'auto' or {plain!r}"
        )
    if backend in ("cpu", "triton"):
        missing = obstacle(backend, device, dtype)
        if missing is not None:
            raise InputError(f"backend {backend!r} {missing}")
    if backend != "auto":
        return backend
    fastest = fastest_on(device)
    if fastest == "triton" and kernels is None:
        return "torch"
    missing = obstacle(fastest, device, dtype)
    if missing is None:
        return fastest if kernels is None or fastest == "cpu" else _verified(kernels, device)
    if missing.startswith("is not"):
        _warn_once(f"{_SLOWER}: backend {fastest!r} {missing}")
    return "torch"


def fastest_on(device: torch.device) -> Literal["cpu", "triton"]:
    """The backend with msssm's own kernels for a device."""
    return "triton" if device.type == "cuda" else "cpu"


def _verified(kernels: Kernels, device: torch.device) -> str:
    """Triton if its kernels are found right and faster on the device, else plain torch."""
    verdict = settle(kernels, device)
    if verdict is None:
        _warn_once(
            f"{_SLOWER}: the {kernels} kernels of backend 'triton' are not checked yet on {device}, and cannot be in a "
            "CUDA graph, a backward or a forked process: run the model once before"
        )
        return "torch"
    if verdict.fault is not None:
        failed = f"the {kernels} kernels of backend 'triton' failed their check on {device}"
        _warn_once(f"{_SLOWER}: {failed}: {verdict.complaint}")
    return verdict.backend


def obstacle(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why "cpu" or "triton" cannot run on tensors of this kind, and what to do; None if it can."""
    if backend == "cpu":
        if device.type != "cpu" or dtype != torch.float32:
            return f"needs float32 tensors on a CPU, got {dtype} on {device}; use 'torch'"
        return None if library() is not None else f"is not built: {_COMPILER}"
    # Triton's interpreter runs the kernels on a CPU.
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if not (device.type == "cuda" or interpreted) or dtype == torch.float64:
        return f"needs float32, float16 or bfloat16 tensors on a GPU, got {dtype} on {device}; use 'torch'"
    return None if triton.available() else "is not installed: pip install triton (Linux)"


# While tracing, too, these run as usual, and their results become constants of the graph. It is what
# torch.compiler.assume_constant_result does, which takes a second to import.
_verified._dynamo_marked_constant = True  # type: ignore[attr-defined]
obstacle._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
