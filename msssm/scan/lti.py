"""Time-invariant diagonal state space models: the convolution form, with state in and out.

The kernel's powers are split in two levels, exp(rate (i c + j)) = exp(rate i c) exp(rate j), so that a kernel of
length L is one matrix product of sqrt(L)-sized factors and no (N, L) Vandermonde matrix is ever formed.
"""

import math
from typing import Literal

import torch
from torch import Tensor


def lti_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    C: Tensor,
    *,
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    discretization: Literal["zoh", "euler"] = "zoh",
) -> Tensor | tuple[Tensor, Tensor]:
    """One time-invariant diagonal state space model per band and channel (S4D, Gu et al. 2022, with B = 1).

        h_t = a h_{t-1} + b u_t,   y_t = Re <C, h_t>,   a = exp(delta A),   b = (a - 1) / A  or  delta

    The outputs come from an FFT, so they are causal up to its rounding, relative to the largest input of the row.
    A complex A stands for conjugate pairs, and y takes twice the real part.

    Args:
        u: inputs (B, L, M, D). What lies past a row's length must be zero.
        delta: step sizes (M, D), positive.
        A: diagonal (M, D, N), real or complex, negative real part.
        C: output weights (M, D, N), same dtype as A.
        lengths: true length of each row (B,); the state is the one after that many steps.
        initial_state: (B, M, D, N) in the dtype of A, zeros when absent.
        return_state: also return the last state.
        discretization: "zoh" or "euler".

    Returns:
        y (B, L, M, D), float32 (float64 for float64 inputs), and the last state (B, M, D, N).

    Raises:
        ValueError: shapes that do not fit together, or an unknown discretization.
    """
    if discretization not in ("zoh", "euler"):
        raise ValueError(f"discretization must be 'zoh' or 'euler', got {discretization!r}")
    batch, length = u.shape[:2]
    for name, x, shape in (
        ("u", u, (batch, length, *delta.shape)),
        ("A", A, (*delta.shape, A.shape[-1])),
        ("C", C, A.shape),
        ("initial_state", A if initial_state is None else initial_state[0], A.shape),
    ):
        if x.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}")
    if initial_state is not None and len(initial_state) != batch:
        raise ValueError(f"initial_state must have {batch} rows as u, got {len(initial_state)}")
    dtype = torch.promote_types(torch.float32, torch.promote_types(u.dtype, A.real.dtype))
    u, delta = u.to(dtype), delta.to(dtype)
    A, C = (x.to(dtype.to_complex() if x.is_complex() else dtype) for x in (A, C))
    if length == 0:
        state = u.new_zeros(batch, *A.shape, dtype=A.dtype) if initial_state is None else initial_state
        return (u, state) if return_state else u
    rate = delta.unsqueeze(-1) * A
    gain = torch.expm1(rate) / A if discretization == "zoh" else delta.unsqueeze(-1).to(A.dtype)
    output = C * (2 if A.is_complex() else 1)
    y = _causal_convolution(u, _kernel(rate, output * gain, length))
    if initial_state is not None:
        free = _kernel(rate, output * torch.exp(rate) * initial_state, length)
        y = y + free.movedim(-1, 1)
    if not return_state:
        return y
    if lengths is None:
        lengths = torch.full((batch,), length, device=u.device)
    state = gain * _last_state(u, rate, lengths)
    if initial_state is not None:
        state = state + torch.exp(rate * lengths.view(-1, 1, 1, 1)) * initial_state
    return y, state


def _powers(rate: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Factors P (..., N, I), Q (..., N, J) with exp(rate (i J + j)) = P_i Q_j and I J >= length."""
    inner = max(1, math.isqrt(length))
    outer = -(-length // inner)
    coarse = torch.arange(outer, device=rate.device, dtype=rate.real.dtype) * inner
    fine = torch.arange(inner, device=rate.device, dtype=rate.real.dtype)
    return torch.exp(rate.unsqueeze(-1) * coarse), torch.exp(rate.unsqueeze(-1) * fine)


def _kernel(rate: Tensor, weight: Tensor, length: int) -> Tensor:
    """Re sum_n weight_n exp(rate_n l) for l = 0..length-1, (..., length); weight (..., N) broadcasts against rate."""
    coarse, fine = _powers(rate, length)
    weighted = (weight.unsqueeze(-1) * coarse).transpose(-1, -2)
    product = weighted @ fine
    return (product.real if product.is_complex() else product).flatten(-2)[..., :length]


def _causal_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """y[t] = sum_l kernel[l] u[t - l] by FFT. u (B, L, M, D), kernel (M, D, L)."""
    length = u.shape[1]
    size = 2 * length
    spectrum = torch.fft.rfft(u.movedim(1, -1), n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :length].movedim(-1, 1)


def _last_state(u: Tensor, rate: Tensor, lengths: Tensor) -> Tensor:
    """sum_{t < length} exp(rate (length - 1 - t)) u_t for each row, (B, M, D, N)."""
    batch, length = u.shape[:2]
    age = torch.arange(length, device=u.device)
    source = lengths.unsqueeze(1) - 1 - age  # position of the input that is `age` steps old
    reversed_u = u[torch.arange(batch, device=u.device).unsqueeze(1), source.clamp(min=0)]
    reversed_u = reversed_u * (source >= 0)[:, :, None, None]
    coarse, fine = _powers(rate, length)
    padded = torch.nn.functional.pad(reversed_u.movedim(1, -1), (0, coarse.shape[-1] * fine.shape[-1] - length))
    blocks = padded.unflatten(-1, (coarse.shape[-1], fine.shape[-1])).to(rate.dtype)  # (B, M, D, I, J)
    return torch.einsum("bmdin,mdni->bmdn", blocks @ fine.transpose(-1, -2), coarse)
