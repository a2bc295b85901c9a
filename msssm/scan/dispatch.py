"""Choice of the form of an operator that runs: the requested one, or the fastest for the given tensors."""

import importlib.util
import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch

from msssm.errors import InputError
from msssm.scan.csrc import library
from msssm.transforms import transformed

Backend = Literal["auto", "reference", "torch", "cpu", "triton"]
BACKENDS = ("auto", "reference", "torch", "cpu", "triton")

_SLOWER = "msssm scans in plain torch, several times slower than it could"


def choose(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    differentiable: Backend = "torch",
    check: Callable[[torch.device], str | None] | None = None,
) -> str:
    """Chooses the backend for tensors of this kind.

    Args:
        backend: Requested one.
        device: Device of the tensors.
        dtype: Type of the computation.
        differentiable: Fastest form of torch operators alone, which supports every transform of `torch.func`.
        check: Finds the fault of the operator's Triton kernels on a device, or None; without it there are no kernels,
            and a GPU runs the torch form.

    Raises:
        ValueError: the backend is unknown, or cannot run here.
    """
    if backend == "auto":
        backend = os.environ.get("MSSSM_BACKEND", "auto")
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if transformed():
        if backend in ("auto", "reference", differentiable):
            return differentiable if backend == "auto" else backend
        raise InputError(
            f"backend {backend!r} has a gradient, but no rules for transforms of torch.func or forward mode: "
            f"use 'auto' or {differentiable!r}"
        )
    if backend in ("cpu", "triton"):
        missing = obstacle(backend, device, dtype)
        if missing is not None:
            raise InputError(f"backend {backend!r} {missing}")
    if backend != "auto":
        return backend
    fastest = fastest_on(device)
    if fastest == "triton" and check is None:
        return "torch"
    missing = obstacle(fastest, device, dtype)
    if missing is None and fastest == "triton":
        missing = _fault(check, device)
    if missing is None:
        return fastest
    if not missing.startswith("needs"):  # a dtype is the caller's choice
        _warn_once(f"{_SLOWER}: backend {fastest!r} {missing}")
    return "torch"


def fastest_on(device: torch.device) -> Literal["cpu", "triton"]:
    """The backend with msssm's own kernels for a device."""
    return "triton" if device.type == "cuda" else "cpu"


def obstacle(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why "cpu" or "triton" cannot run on tensors of this kind, and what to do; None if it can."""
    if backend == "cpu":
        if device.type != "cpu" or dtype != torch.float32:
            return f"needs float32 tensors on a CPU, got {dtype} on {device}; use 'torch'"
        return library.obstacle()
    # Triton's interpreter runs the kernels on a CPU.
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if not (device.type == "cuda" or interpreted) or dtype == torch.float64:
        return f"needs float32, float16 or bfloat16 tensors on a GPU, got {dtype} on {device}; use 'torch'"
    return None if importlib.util.find_spec("triton") else "is not installed: pip install triton (Linux)"


def _fault(check: Callable[[torch.device], str | None] | None, device: torch.device) -> str | None:
    return None if check is None else check(device)


# While tracing, too, these run as usual, and their results become constants of the graph. It is what
# torch.compiler.assume_constant_result does, which takes a second to import.
_fault._dynamo_marked_constant = True  # type: ignore[attr-defined]
obstacle._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
