"""The torch form of the time-invariant scan, a convolution with state in and out.

The kernel's powers are split in two levels, exp(rate (i c + j)) = exp(rate i c) exp(rate j), so that a kernel of
length L is one matrix product of sqrt(L)-sized factors and no (N, L) Vandermonde matrix is ever formed.
"""

import math

import torch
from torch import Tensor

from msssm.padding import mask_padding, position_mask
from msssm.scan.lti import reference
from msssm.scan.mixing import mix_bands


def banded_lti(
    u: Tensor, rate: Tensor, weight: Tensor, lengths: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Computes h_t = exp(rate) h_{t-1} + u_t, y_t = Re sum_n weight h_t by FFT, causal up to its rounding.

    Shapes: u (B, L, M, D), zero past a row's length; rate and weight (M, D, N), state (B, M, D, N), real or complex.
    Returns y (B, L, M, D) and the state at each row's length.
    """
    batch, length = u.shape[:2]
    y = _causal_convolution(u, _kernel(rate, weight, length))
    if lengths is None:
        lengths = torch.full((batch,), length, device=u.device)
    last = _last_state(u, rate, lengths)
    if state is not None:
        y = y + _kernel(rate, weight * torch.exp(rate) * state, length).movedim(-1, 1)
        last = last + torch.exp(rate * lengths.view(-1, 1, 1, 1)) * state
    return y, last


def _powers(rate: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Factors P (..., N, I), Q (..., N, J) with exp(rate (i J + j)) = P_i Q_j and I J >= length."""
    inner = max(1, math.isqrt(length))
    outer = -(-length // inner)
    coarse = torch.arange(outer, device=rate.device, dtype=rate.real.dtype) * inner
    fine = torch.arange(inner, device=rate.device, dtype=rate.real.dtype)
    return torch.exp(rate.unsqueeze(-1) * coarse), torch.exp(rate.unsqueeze(-1) * fine)


def _kernel(rate: Tensor, weight: Tensor, length: int) -> Tensor:
    """Kernel Re sum_n weight_n exp(rate_n l) for l = 0..length-1, (..., length); weight broadcasts with rate."""
    coarse, fine = _powers(rate, length)
    weighted = (weight.unsqueeze(-1) * coarse).transpose(-1, -2)
    product = weighted @ fine
    return (product.real if product.is_complex() else product).flatten(-2)[..., :length]


def _causal_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """Computes y[t] = sum_l kernel[l] u[t - l] by FFT for u (B, L, M, D), kernel (M, D, L)."""
    length = u.shape[1]
    size = 2 * length
    spectrum = torch.fft.rfft(u.movedim(1, -1), n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :length].movedim(-1, 1)


def _last_state(u: Tensor, rate: Tensor, lengths: Tensor) -> Tensor:
    """Computes sum_{t < length} exp(rate (length - 1 - t)) u_t for each row, (B, M, D, N)."""
    batch, length = u.shape[:2]
    age = torch.arange(length, device=u.device)
    source = lengths.unsqueeze(1) - 1 - age  # position of the input that is `age` steps old
    reversed_u = u[torch.arange(batch, device=u.device).unsqueeze(1), source.clamp(min=0)]
    reversed_u = reversed_u * (source >= 0)[:, :, None, None]
    coarse, fine = _powers(rate, length)
    padded = torch.nn.functional.pad(reversed_u.movedim(1, -1), (0, coarse.shape[-1] * fine.shape[-1] - length))
    blocks = padded.unflatten(-1, (coarse.shape[-1], fine.shape[-1])).to(rate.dtype)  # (B, M, D, I, J)
    return torch.einsum("bmdin,mdni->bmdn", blocks @ fine.transpose(-1, -2), coarse)


def sequential_scan(
    u: Tensor,
    decay: Tensor,
    weight: Tensor,
    mix: Tensor,
    D: Tensor | None,
    lengths: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Runs `msssm.scan.lti.cpu.scan` through the sequential reference, in any dtype."""
    u, mix = mask_padding(u, lengths), mask_padding(mix, lengths)
    start = decay.new_zeros(len(u), *decay.shape) if state is None else state
    mask = None if lengths is None else position_mask(lengths, u.shape[1])
    y, last = reference.banded_lti(u, decay, weight, mask, start)
    return mix_bands(y if D is None else y + D * u, mix), last
