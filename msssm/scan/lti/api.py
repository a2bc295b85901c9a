"""Time-invariant scans: check of the arguments, discretisation, and the call of the chosen backend."""

import torch
from torch import Tensor

from msssm.padding import mask_padding, true_lengths
from msssm.scan.checks import Discretization, check_discretization, check_operand, expect_dimensions
from msssm.scan.dispatch import Backend, choose
from msssm.scan.lti import cpu
from msssm.scan.lti import torch as torch_form
from msssm.scan.mixing import as_heads, check_mix, mix_bands


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
        backend: "cpu", "torch" (also on GPUs), "reference", or "auto", as in `multiscale_scan`.

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
    chosen = choose(backend, bands.device, dtype)
    with torch.autocast(bands.device.type, enabled=False):
        u, mix, delta = bands.to(dtype), as_heads(mix).to(dtype), delta.to(dtype)
        kind = torch.promote_types(dtype, torch.complex64) if A.is_complex() else dtype
        skip = None if D is None else D.to(dtype)
        rate, gain, weight = discretized(delta, A.to(kind), C.to(kind), discretization)
        # The recurrences compute h' with h = gain h', so that the input enters them unscaled.
        state = None if initial_state is None else initial_state.to(kind) / gain
        if chosen == "torch" and length:
            banded = mask_padding(u, lengths)
            y, last = torch_form.banded_lti(banded, rate, weight, lengths, state)
            y = mix_bands(y if skip is None else y + skip * banded, mask_padding(mix, lengths))
        else:
            scan = cpu.scan if chosen == "cpu" else torch_form.sequential_scan
            y, last = scan(u, torch.exp(rate), weight, mix, skip, lengths, state)
    y = y.to(bands.dtype)
    return (y, gain * last) if return_state else y


def discretized(delta: Tensor, A: Tensor, C: Tensor, discretization: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithm of the decay, gain of the input, and weight of the states times gain, each (M, D, N)."""
    rate = delta.unsqueeze(-1) * A
    gain = torch.expm1(rate) / A if discretization == "zoh" else delta.unsqueeze(-1).to(A.dtype)
    return rate, gain, C * gain * (2 if A.is_complex() else 1)
