"""The scans that others use, written for this comparison: same arguments, same numbers, their way of computing.

All run the selective recurrence of Mamba (Gu & Dao 2023, algorithm 2, with its simplified Bbar = delta B) on M bands,

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,   y_t = sum_m mix_t[m] <C_t, h_t>

with u, delta (B, L, M, D); A (M, D, N); B, C (B, L, M, N); mix (B, L, M); y (B, L, D).
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def sequential_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, mix: Tensor) -> Tensor:
    """The form of mamba_ssm's `selective_scan_ref`: decays and inputs written out, then indexed step by step.

    Its backward takes a time of order L^2, since the gradient of each indexing is a whole tensor of zeros.
    """
    decay, drive = discretize(u, delta, A, B)
    h = torch.zeros_like(decay[:, 0])
    outputs = []
    for t in range(u.shape[1]):
        h = decay[:, t] * h + drive[:, t]
        outputs.append(torch.einsum("bmdn,bmn->bmd", h, C[:, t]))
    return torch.einsum("blmd,blm->bld", torch.stack(outputs, 1), mix)


def blelloch_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, mix: Tensor) -> Tensor:
    """The form of mamba.py's `pscan`: a work-efficient tree over time in eager torch (Blelloch 1990)."""
    h = _Tree.apply(*discretize(u, delta, A, B))
    return _read_out(h, C, mix)


def associative_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, mix: Tensor) -> Tensor:
    """torch's own `associative_scan` under `torch.compile`, which compiles anew for every shape."""
    y: Tensor = _compiled()(u, delta, A, B, C, mix)
    return y


def s4d_convolution(u: Tensor, delta: Tensor, A: Tensor, C: Tensor, mix: Tensor) -> Tensor:
    """The form of state-spaces/s4's `s4d.py`: the kernel from the whole (N, L) Vandermonde matrix, then an FFT.

    Zero-order hold with B = 1; delta (M, D); A, C (M, D, N) complex, each standing for a conjugate pair.
    """
    length = u.shape[1]
    exponent = delta.unsqueeze(-1) * A
    vandermonde = torch.exp(exponent.unsqueeze(-1) * torch.arange(length, device=u.device))
    kernel = 2 * torch.einsum("mdn,mdnl->mdl", C * (torch.exp(exponent) - 1) / A, vandermonde).real
    spectrum = torch.fft.rfft(u.movedim(1, -1), n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    y = torch.fft.irfft(spectrum, n=2 * length)[..., :length]
    return torch.einsum("bmdl,blm->bld", y, mix)


def convolutional_decomposition(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Depthwise `conv1d`s, two per level, as MultiresNet's. x (B, L, D); low, high (S, K, D) -> (B, L, S + 2, D)."""
    approximation = x.transpose(1, 2)
    bands = [approximation]
    for level, (low_taps, high_taps) in enumerate(zip(low, high, strict=True)):
        dilation = 2**level
        padded = F.pad(approximation, ((len(low_taps) - 1) * dilation, 0))
        detail, approximation = (
            F.conv1d(padded, taps.flip(0).T.unsqueeze(1), groups=x.shape[2], dilation=dilation)
            for taps in (high_taps, low_taps)
        )
        bands.append(detail)
    return torch.stack((*bands, approximation), 1).permute(0, 3, 1, 2).contiguous()


def discretize(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """exp(delta A) and delta B u, each (B, L, M, D, N)."""
    return torch.exp(delta.unsqueeze(-1) * A), (delta * u).unsqueeze(-1) * B.unsqueeze(-2)


def _read_out(h: Tensor, C: Tensor, mix: Tensor) -> Tensor:
    y = (h @ C.unsqueeze(-1)).squeeze(-1)
    return torch.einsum("blmd,blm->bld", y, mix)


class _Tree(torch.autograd.Function):
    """h_t = decay_t h_{t-1} + drive_t over the second dimension."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor) -> Tensor:
        h = drive.clone()
        _tree_scan(decay.clone(), h)
        ctx.save_for_backward(decay, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        decay, h = ctx.saved_tensors
        # The gradient obeys the same recurrence, backwards in time and one step later.
        later = torch.cat((torch.zeros_like(decay[:, :1]), decay[:, 1:].flip(1)), 1)
        reverse = grad.flip(1)
        _tree_scan(later, reverse)
        grad_drive = reverse.flip(1)
        grad_decay = torch.zeros_like(decay)
        grad_decay[:, 1:] = grad_drive[:, 1:] * h[:, :-1]
        return grad_decay, grad_drive


def _tree_scan(a: Tensor, x: Tensor) -> None:
    """Replaces x by the states; a is used up."""
    length = x.shape[1]
    strides = [2**k for k in range(length.bit_length()) if 2 ** (k + 1) <= length]
    for s in strides:
        count = length // (2 * s)
        left, right = slice(s - 1, None, 2 * s), slice(2 * s - 1, None, 2 * s)
        x[:, right].addcmul_(a[:, right], x[:, left][:, :count])
        a[:, right].mul_(a[:, left][:, :count])
    for s in reversed(strides):
        right = slice(3 * s - 1, None, 2 * s)
        count = x[:, right].shape[1]
        x[:, right].addcmul_(a[:, right], x[:, 2 * s - 1 :: 2 * s][:, :count])


@cache
def _compiled() -> Any:
    from torch._higher_order_ops.associative_scan import associative_scan as scan

    def combine(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return first[0] * second[0], second[0] * first[1] + second[1]

    def run(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, mix: Tensor) -> Tensor:
        _, h = scan(combine, discretize(u, delta, A, B), dim=1, combine_mode="generic")
        return _read_out(h, C, mix)

    return torch.compile(run)
