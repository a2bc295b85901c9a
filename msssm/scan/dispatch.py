"""Which backend runs an operator: the one asked for, or the fastest for the tensors at hand."""

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
    """The backend that runs on tensors of this kind.

    Args:
        backend: the one asked for.
        device: of the tensors.
        dtype: of the computation.
        plain: the fastest one made of torch operators throughout, which any transform of `torch.func` goes through.
        kernels: the Triton kernels of the operator; None where it has none, and runs in plain torch on a GPU.

    Raises:
        ValueError: an unknown backend, or one that cannot run here.
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
    """The backend of own kernels for a device."""
    return "triton" if device.type == "cuda" else "cpu"


def _verified(kernels: Kernels, device: torch.device) -> str:
    """Triton where its kernels have been checked and are faster, else plain torch."""
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
    """Why "cpu" or "triton" cannot run on tensors of this kind, and what to do; None where it can."""
    if backend == "cpu":
        if device.type != "cpu" or dtype != torch.float32:
            return f"needs float32 tensors on a CPU, got {dtype} on {device}; use 'torch'"
        return None if library() is not None else f"is not built: {_COMPILER}"
    # Triton's interpreter runs the kernels on a CPU.
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if not (device.type == "cuda" or interpreted) or dtype == torch.float64:
        return f"needs float32, float16 or bfloat16 tensors on a GPU, got {dtype} on {device}; use 'torch'"
    return None if triton.available() else "is not installed: pip install triton (Linux)"


# A check, or the search for a library, runs while tracing as at any other time, and its outcome is a constant of the
# graph. This is what torch.compiler.assume_constant_result does, without its import of a second.
_verified._dynamo_marked_constant = True  # type: ignore[attr-defined]
obstacle._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
