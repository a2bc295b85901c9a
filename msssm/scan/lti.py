"""Time-invariant scans: check of the arguments, discretisation, and the call of the chosen backend."""

import torch
from torch import Tensor

from msssm.padding import mask_padding, position_mask, true_lengths
from msssm.scan import reference, triton
from msssm.scan.checks import Discretization, check_discretization, check_operand, expect_dimensions
from msssm.scan.cpu import lti as native
from msssm.scan.dispatch import Backend, choose
from msssm.scan.mixing import as_heads, check_mix, mix_bands
from msssm.scan.torch import convolution
from msssm.transforms import plain_form


def lti_scan(
    bands: Tensor,
    delta: Tensor,
    A: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    discretization: Discretization = "zoh",
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs one time-invariant diagonal model per band and channel (S4D, Gu et al. 2022, B = 1), and mixes the bands.

        h^s_t = a h^s_{t-1} + b u^s_t,   y_t = sum_s mix_t[s] (<C^s, h^s_t> + D^s u^s_t)
        a = exp(delta A),   b = (a - 1) / A  or  delta

    A complex A stands for conjugate pairs: the output is 2 Re `<C, h>`. The backend "torch" convolves by FFT, which is
    causal up to its rounding, relative to the largest input of the row; the others run the recurrence.

    Args:
        bands: u (B, L, M, D), the decomposed input, finest band first.
        delta: step sizes (M, D), positive.
        A: diagonal (M, D, N), real or complex, negative real part.
        C: output weights (M, D, N), same kind as A.
        mix: scale mixer weights (B, L, M), or (B, L, M, H) with one weight per head of D / H channels.
        D: skip weights (M, D).
        lengths: true length of each row (B,). Padding past it is not read, does not change the state, and gives y = 0.
        initial_state: (B, M, D, N), same kind as A; None for zeros.
        return_state: also return the state after the last step.
        discretization: "zoh" or "euler".
        backend: "cpu", "triton", "torch", "reference", or "auto", as in `multiscale_scan`.

    Returns:
        y (B, L, D) in the dtype of `bands`, and the last state (B, M, D, N), in at least float32.

    Raises:
        ValueError: shapes do not fit together, or a discretization or backend is unknown or cannot run here.
    """
    check_discretization(discretization)
    batch, length, M, channels = expect_dimensions("bands", bands, 4)
    N = A.shape[-1]
    check_mix(mix, bands)
    for name, x, shape, complex_too in (
        ("bands", bands, bands.shape, False),
        ("delta", delta, (M, channels), False),
        ("A", A, (M, channels, N), True),
        ("C", C, (M, channels, N), A.is_complex()),
        ("mix", mix, mix.shape, False),
        ("D", D, (M, channels), False),
        ("initial_state", initial_state, (batch, M, channels, N), A.is_complex()),
    ):
        check_operand(name, x, shape, bands, complex_too=complex_too)
    lengths = true_lengths(lengths, bands)
    dtype = torch.promote_types(torch.float32, torch.promote_types(bands.dtype, A.real.dtype))
    chosen = choose(backend, bands.device, dtype, plain="torch", kernels="lti")
    with torch.autocast(bands.device.type, enabled=False):
        u, delta, mix = bands, delta.to(dtype), as_heads(mix)
        if chosen != "triton":  # which widens as it reads
            u, mix = u.to(dtype), mix.to(dtype)
        kind = torch.promote_types(dtype, torch.complex64) if A.is_complex() else dtype
        A, C = A.to(kind), C.to(kind)
        skip = None if D is None else D.to(dtype)
        rate = delta.unsqueeze(-1) * A
        gain = torch.expm1(rate) / A if discretization == "zoh" else delta.unsqueeze(-1).to(kind)
        weight = C * gain * (2 if A.is_complex() else 1)
        # The recurrences compute h' with h = gain h', so that the input enters them unscaled.
        state = None if initial_state is None else initial_state.to(kind) / gain
        if chosen == "cpu":
            y, last = native.lti_scan(u, torch.exp(rate), weight, mix, skip, lengths, state)
        elif chosen == "triton":
            y, last = triton.lti_scan(u, torch.exp(rate), weight, mix, skip, lengths, state)
        else:
            banded = mask_padding(u, lengths)
            if chosen == "torch" and length:
                y, last = convolution.banded_lti(banded, rate, weight, lengths, state)
                y = mix_bands(y if skip is None else y + skip * banded, mask_padding(mix, lengths))
            else:
                y, last = _sequential(u, torch.exp(rate), weight, mix, skip, lengths, state)
    y = y.to(bands.dtype)
    return (y, gain * last) if return_state else y


def _sequential(
    u: Tensor,
    decay: Tensor,
    weight: Tensor,
    mix: Tensor,
    skip: Tensor | None,
    lengths: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The sequential reference of `msssm.scan.cpu.lti.lti_scan`."""
    u, mix = mask_padding(u, lengths), mask_padding(mix, lengths)
    start = decay.new_zeros(len(u), *decay.shape) if state is None else state
    mask = None if lengths is None else position_mask(lengths, u.shape[1])
    y, last = reference.banded_lti(u, decay, weight, mask, start)
    return mix_bands(y if skip is None else y + skip * u, mix), last


@plain_form("msssm::lti")
def _plain(
    u: Tensor,
    mix: Tensor,
    decay: Tensor,
    decay_im: Tensor | None,
    weight: Tensor,
    weight_im: Tensor | None,
    initial: Tensor | None,
    initial_im: Tensor | None,
    D: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain form of the native operator: y, and both parts of the last state (B, M, N, D)."""

    def turned(re: Tensor, im: Tensor | None) -> Tensor:
        return (re if im is None else torch.complex(re, im)).transpose(-1, -2)

    state = None if initial is None else turned(initial, initial_im)
    y, last = _sequential(u, turned(decay, decay_im), turned(weight, weight_im), mix, D, lengths, state)
    last = last.transpose(-1, -2)
    return y, *((last.real, last.imag) if last.is_complex() else (last, u.new_empty(0)))


@plain_form("msssm::triton_lti")
def _plain_planes(
    u: Tensor, decay: Tensor, weight: Tensor, mix: Tensor, D: Tensor | None, lengths: Tensor | None, initial: Tensor
) -> tuple[Tensor, Tensor]:
    """Plain form of the Triton operator: y, and the last state in planes."""
    parts = [(x[0], x[1] if len(x) == 2 else None) for x in (decay, weight, initial)]
    y, *last = _plain(u.to(decay.dtype), mix.to(decay.dtype), *parts[0], *parts[1], *parts[2], D, lengths)
    return y.to(u.dtype), torch.stack(last[: len(decay)])
