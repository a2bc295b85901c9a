"""Selective scans: arguments checked, backend chosen, tensors laid out. The recurrences stand in their own modules."""

import os
import warnings
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from msssm.scan import blocked, cpu, reference
from msssm.scan.lti import lti_scan
from msssm.scan.mixing import check_mix, mix_bands

Discretization = Literal["zoh", "euler"]
Backend = Literal["auto", "reference", "torch", "cpu"]

_BANDED = {"reference": reference.banded_scan, "torch": blocked.banded_scan}

__all__ = ["Backend", "Discretization", "lti_scan", "mix_bands", "multiscale_scan", "selective_scan"]


def multiscale_scan(
    bands: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    discretization: Discretization = "zoh",
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """One selective state space model per band, and the mix of their outputs (MS-SSM, sections 3.2 and 3.3).

        h^s_t = exp(delta^s_t A^s) h^s_{t-1} + Bbar^s_t u^s_t,   y_t = sum_s mix_t[s] (<C^s_t, h^s_t> + D^s u^s_t)

    Args:
        bands: u (B, L, M, D), the decomposed input, finest band first.
        delta: step sizes (B, L, M, D), not negative. A step of 0 leaves the state as it is.
        A: negative decay rates (M, D, N).
        B: input weights (B, L, M, N).
        C: output weights (B, L, M, N).
        mix: scale mixer weights (B, L, M), or (B, L, M, H) with one weight per head of D / H channels.
        D: skip weights (M, D).
        initial_state: (B, M, D, N), zeros when absent.
        return_state: also return the state after the last step, (B, M, D, N).
        discretization: "zoh" (Bbar = (exp(delta A) - 1) / A B) or "euler" (Bbar = delta B, as Mamba's).
        backend: "cpu" (native, float32), "torch" (blocked, recomputing backward), "reference" (sequential), or "auto":
            the fastest that runs here, unless the environment variable MSSSM_BACKEND names one.

    Returns:
        y (B, L, D) in the dtype of `bands`, and the state in float32 (float64 for float64 inputs). Second derivatives
        need the backend "reference".

    Raises:
        ValueError: shapes that do not fit together, or a discretization or backend that is unknown or cannot run here.
    """
    batch, length, M, channels = _expect("bands", bands, 4)
    N = A.shape[-1]
    _check("delta", delta, (batch, length, M, channels))
    _check("A", A, (M, channels, N))
    _check("B", B, (batch, length, M, N))
    _check("C", C, (batch, length, M, N))
    check_mix(mix, bands)
    if D is not None:
        _check("D", D, (M, channels))
    if initial_state is not None:
        _check("initial_state", initial_state, (batch, M, channels, N))
    y, state = _run(bands, delta, A, B, C, mix, D, initial_state, discretization, backend)
    return (y, state) if return_state else y


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    discretization: Discretization = "zoh",
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """A selective state space model on one sequence (Gu & Dao 2023, algorithm 2): `multiscale_scan` with one band.

    Args:
        u: input (B, L, D).
        delta: step sizes (B, L, D), not negative.
        A: negative decay rates (D, N).
        B: input weights (B, L, N).
        C: output weights (B, L, N).
        D: skip weights (D,).
        initial_state: (B, D, N), zeros when absent.
        return_state: also return the state after the last step, (B, D, N).
        discretization: "zoh" or "euler", as in `multiscale_scan`.
        backend: "auto", "cpu", "torch" or "reference", as in `multiscale_scan`.

    Returns:
        y (B, L, D) in the dtype of `u`, and the state in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not fit together, or a discretization or backend that is unknown or cannot run here.
    """
    batch, length, channels = _expect("u", u, 3)
    N = A.shape[-1]
    _check("delta", delta, (batch, length, channels))
    _check("A", A, (channels, N))
    _check("B", B, (batch, length, N))
    _check("C", C, (batch, length, N))
    if D is not None:
        _check("D", D, (channels,))
        D = D.unsqueeze(0)
    if initial_state is not None:
        _check("initial_state", initial_state, (batch, channels, N))
        initial_state = initial_state.unsqueeze(1)
    one_band = u.new_ones(()).expand(batch, length, 1)
    banded_u, banded_delta, banded_B, banded_C = (x.unsqueeze(2) for x in (u, delta, B, C))
    y, state = _run(
        banded_u, banded_delta, A.unsqueeze(0), banded_B, banded_C, one_band, D, initial_state, discretization, backend
    )
    return (y, state.squeeze(1)) if return_state else y


def _run(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
    discretization: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Mixed outputs (B, L, D) in the dtype of u, and the last state in at least float32."""
    if discretization not in ("zoh", "euler"):
        raise ValueError(f"discretization must be 'zoh' or 'euler', got {discretization!r}")
    # Decays and states lose their meaning in half precision (products of many factors close to 1).
    dtype = torch.promote_types(torch.float32, u.dtype)
    backend = _choose(backend, u.device, dtype)
    output_dtype = u.dtype
    with torch.autocast(u.device.type, enabled=False):
        u, delta, A, B, C, mix = (x.to(dtype) for x in (u, delta, A, B, C, mix))
        D = None if D is None else D.to(dtype)
        initial_state = None if initial_state is None else initial_state.to(dtype)
        if backend == "cpu":
            heads = mix if mix.ndim == 4 else mix.unsqueeze(-1)
            y, state = cpu.multiscale_scan(u, delta, A, B, C, heads, D, initial_state, discretization)
        else:
            if initial_state is None:
                initial_state = u.new_zeros(u.shape[0], *A.shape)
            bands, state = _BANDED[backend](u, delta, A, B, C, initial_state, discretization)
            y = mix_bands(bands if D is None else bands + D * u, mix)
    return y.to(output_dtype), state


def _choose(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that runs: the one asked for, or the fastest for these tensors."""
    if backend == "auto":
        backend = os.environ.get("MSSSM_BACKEND", "auto")
    if backend not in ("auto", "cpu", *_BANDED):
        raise ValueError(f"backend must be one of auto, cpu, {', '.join(_BANDED)}, got {backend!r}")
    native = device.type == "cpu" and dtype == torch.float32
    if backend == "cpu":
        if not native:
            raise ValueError(f"backend 'cpu' needs float32 tensors on a CPU, got {dtype} on {device}; use 'torch'")
        if cpu.library() is None:
            raise ValueError(f"backend 'cpu' is not built: {_REMEDY}")
    elif backend == "auto":
        backend = "torch"
        if native and cpu.library() is not None:
            backend = "cpu"
        elif native:
            _warn_once()
    return backend


_REMEDY = "install a C++ compiler (g++ or clang++), then msssm again"


@cache
def _warn_once() -> None:
    warnings.warn(f"msssm scans with plain torch, several times slower than its native scan; {_REMEDY}", stacklevel=2)


def _expect(name: str, x: Tensor, ndim: int) -> torch.Size:
    if x.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, got shape {tuple(x.shape)}")
    return x.shape


def _check(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
