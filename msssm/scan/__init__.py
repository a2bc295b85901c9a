"""Selective scans: arguments checked, backend chosen, tensors laid out. The recurrences stand in their own modules."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from msssm.scan import blocked, reference
from msssm.scan.lti import lti_scan
from msssm.scan.mixing import mix_bands

Discretization = Literal["zoh", "euler"]
Backend = Literal["auto", "reference", "torch"]

_BandedScan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, str], tuple[Tensor, Tensor]]
# "auto" is the fastest backend that runs everywhere.
_BACKENDS: dict[str, _BandedScan] = {
    "auto": blocked.banded_scan,
    "reference": reference.banded_scan,
    "torch": blocked.banded_scan,
}

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
        backend: "auto", "torch" (blocked, recomputing backward) or "reference" (sequential, any dtype).

    Returns:
        y (B, L, D) in the dtype of `bands`, and the state in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not fit together, or an unknown discretization or backend.
    """
    batch, length, M, channels = _expect("bands", bands, 4)
    N = A.shape[-1]
    _check("delta", delta, (batch, length, M, channels))
    _check("A", A, (M, channels, N))
    _check("B", B, (batch, length, M, N))
    _check("C", C, (batch, length, M, N))
    if D is not None:
        _check("D", D, (M, channels))
    if initial_state is not None:
        _check("initial_state", initial_state, (batch, M, channels, N))
    y, state = _run(bands, delta, A, B, C, D, initial_state, discretization, backend)
    mixed = mix_bands(y, mix).to(bands.dtype)
    return (mixed, state) if return_state else mixed


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
        backend: "auto", "torch" or "reference", as in `multiscale_scan`.

    Returns:
        y (B, L, D) in the dtype of `u`, and the state in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not fit together, or an unknown discretization or backend.
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
    banded_u, banded_delta, banded_B, banded_C = (x.unsqueeze(2) for x in (u, delta, B, C))
    y, state = _run(
        banded_u, banded_delta, A.unsqueeze(0), banded_B, banded_C, D, initial_state, discretization, backend
    )
    y, state = y.squeeze(2).to(u.dtype), state.squeeze(1)
    return (y, state) if return_state else y


def _run(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
    discretization: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Outputs per band (B, L, M, D) and the last state, computed in at least float32."""
    if discretization not in ("zoh", "euler"):
        raise ValueError(f"discretization must be 'zoh' or 'euler', got {discretization!r}")
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")
    # Decays and states lose their meaning in half precision (products of many factors close to 1).
    dtype = torch.promote_types(torch.float32, u.dtype)
    with torch.autocast(u.device.type, enabled=False):
        u, delta, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))
        if initial_state is None:
            initial_state = u.new_zeros(u.shape[0], *A.shape)
        y, state = _BACKENDS[backend](u, delta, A, B, C, initial_state.to(dtype), discretization)
        if D is not None:
            y = y + D.to(dtype) * u
    return y, state


def _expect(name: str, x: Tensor, ndim: int) -> torch.Size:
    if x.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, got shape {tuple(x.shape)}")
    return x.shape


def _check(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
