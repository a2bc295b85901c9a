"""Selective scans: arguments checked, and run by the chosen backend."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from msssm.padding import mask_padding, true_lengths
from msssm.scan import reference, triton
from msssm.scan.checks import Discretization, check_discretization, check_operand, expect_dimensions
from msssm.scan.cpu import selective as native
from msssm.scan.dispatch import Backend, choose
from msssm.scan.mixing import as_heads, check_mix, mix_bands
from msssm.scan.step_size import MAX_DELTA, MIN_DELTA, full_rank, step_size
from msssm.scan.torch import blocked
from msssm.transforms import plain_form

_BANDED = {"reference": reference.banded_scan, "torch": blocked.banded_scan}


def multiscale_scan(
    bands: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None = None,
    *,
    delta_weight: Tensor | None = None,
    delta_bias: Tensor | None = None,
    lengths: Tensor | None = None,
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
            With a `delta_weight` their low rank (B, L, M, R).
        A: negative decay rates (M, D, N).
        B: input weights (B, L, M, N).
        C: output weights (B, L, M, N).
        mix: scale mixer weights (B, L, M), or (B, L, M, H) with one weight per head of D / H channels.
        D: skip weights (M, D).
        delta_weight: (M, R, D); when given, delta @ delta_weight is what delta is without it.
        delta_bias: (M, D); when given, the step sizes are softplus(delta + delta_bias), at least 1e-4 and at most 1e6.
        lengths: true length of each row (B,). What lies past it is not read, leaves the state, and gives y = 0.
        initial_state: (B, M, D, N), zeros when absent.
        return_state: also return the state after the last step, (B, M, D, N).
        discretization: "zoh" (Bbar = (exp(delta A) - 1) / A B) or "euler" (Bbar = delta B, as Mamba's).
        backend: "cpu" (native, float32), "triton" (GPU), "torch" (blocked, recomputing backward), "reference"
            (sequential), or "auto": the fastest that is known to be right here, unless the environment variable
            MSSSM_BACKEND names one. The first "auto" on a GPU checks the Triton kernels there, for some seconds.

    Returns:
        y (B, L, D) in the dtype of `bands`, and the state in float32 (float64 for float64 inputs).

        Second derivatives (`create_graph`), and under "auto" the transforms of `torch.func` and forward mode, run
        through the sequential reference. With another backend named, a transform is refused.

    Raises:
        ValueError: shapes that do not fit together, or a discretization or backend that is unknown or cannot run here.
    """
    batch, length, M, channels = expect_dimensions("bands", bands, 4)
    N = A.shape[-1]
    varying, per_band = (batch, length, M), (M, channels)
    rank = 0 if delta_weight is None else delta_weight.shape[1]
    check_mix(mix, bands)
    for name, x, shape in (
        ("bands", bands, (*varying, channels)),
        ("delta", delta, (*varying, channels if delta_weight is None else rank)),
        ("A", A, (*per_band, N)),
        ("B", B, (*varying, N)),
        ("C", C, (*varying, N)),
        ("mix", mix, mix.shape),
        ("D", D, per_band),
        ("delta_weight", delta_weight, (M, rank, channels)),
        ("delta_bias", delta_bias, per_band),
        ("initial_state", initial_state, (batch, *per_band, N)),
    ):
        check_operand(name, x, shape, bands)
    lengths = true_lengths(lengths, bands)
    y, state = _run(
        bands, delta, A, B, C, as_heads(mix), D, delta_weight, delta_bias, lengths, initial_state, discretization,
        backend,
    )  # fmt: skip
    return (y, state) if return_state else y


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    lengths: Tensor | None = None,
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
        delta_bias: (D,); when given, the step sizes are softplus(delta + delta_bias), at least 1e-4 and at most 1e6.
        lengths: true length of each row (B,). What lies past it is not read, leaves the state, and gives y = 0.
        initial_state: (B, D, N), zeros when absent.
        return_state: also return the state after the last step, (B, D, N).
        discretization: "zoh" or "euler", as in `multiscale_scan`.
        backend: "auto", "cpu", "triton", "torch" or "reference", as in `multiscale_scan`.

    Returns:
        y (B, L, D) in the dtype of `u`, and the state in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not fit together, or a discretization or backend that is unknown or cannot run here.
    """
    batch, length, channels = expect_dimensions("u", u, 3)
    N = A.shape[-1]
    for name, x, shape in (
        ("u", u, (batch, length, channels)),
        ("delta", delta, (batch, length, channels)),
        ("A", A, (channels, N)),
        ("B", B, (batch, length, N)),
        ("C", C, (batch, length, N)),
        ("D", D, (channels,)),
        ("delta_bias", delta_bias, (channels,)),
        ("initial_state", initial_state, (batch, channels, N)),
    ):
        check_operand(name, x, shape, u)
    lengths = true_lengths(lengths, u)
    D, delta_bias = (None if x is None else x.unsqueeze(0) for x in (D, delta_bias))
    initial_state = None if initial_state is None else initial_state.unsqueeze(1)
    one_band = u.new_ones(()).expand(batch, length, 1, 1)
    u, delta, B, C = (x.unsqueeze(2) for x in (u, delta, B, C))
    y, state = _run(
        u, delta, A.unsqueeze(0), B, C, one_band, D, None, delta_bias, lengths, initial_state, discretization, backend
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
    delta_weight: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    discretization: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Mixed outputs (B, L, D) in the dtype of u, and the last state in at least float32."""
    check_discretization(discretization)
    # Decays and states lose their meaning in half precision (products of many factors close to 1).
    dtype = torch.promote_types(torch.float32, u.dtype)
    backend = choose(backend, u.device, dtype, plain="reference", kernels="selective")
    output_dtype = u.dtype
    if delta_weight is not None and backend != "cpu":  # which has it formed as it reads
        delta, delta_weight = full_rank(delta, delta_weight), None
    with torch.autocast(u.device.type, enabled=False):
        if backend != "triton":  # which widens as it reads
            u, delta, B, C, mix = (x.to(dtype) for x in (u, delta, B, C, mix))
        A = A.to(dtype)
        D, delta_weight, delta_bias, initial_state = (
            None if x is None else x.to(dtype) for x in (D, delta_weight, delta_bias, initial_state)
        )
        if backend == "cpu":
            y, state = native.multiscale_scan(
                u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, initial_state, discretization,
                (MIN_DELTA, MAX_DELTA),
            )  # fmt: skip
        elif backend == "triton":
            y, state = triton.multiscale_scan(
                u, delta, A, B, C, mix, D, delta_bias, lengths, initial_state, discretization
            )
        else:
            y, state = _in_torch(
                u, delta, A, B, C, mix, D, delta_bias, lengths, initial_state, discretization, _BANDED[backend]
            )
    return y.to(output_dtype), state


def _in_torch(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    discretization: str,
    banded_scan: Callable[..., tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """`_run` around a scan of the bands."""
    u, delta, B, C, mix = (mask_padding(x, lengths) for x in (u, delta, B, C, mix))
    if delta_bias is not None:
        # A step of 0 leaves the state.
        delta = mask_padding(step_size(delta, delta_bias), lengths)
    if initial_state is None:
        initial_state = u.new_zeros(u.shape[0], *A.shape)
    bands, state = banded_scan(u, delta, A, B, C, initial_state, discretization)
    return mix_bands(bands if D is None else bands + D * u, mix), state


@plain_form("msssm::selective")
def _plain(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None,
    delta_weight: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    initial: Tensor | None,
    zoh: bool,
    *_: float,
) -> tuple[Tensor, ...]:
    """y and the last state of the operator, whose states are (B, M, N, D) and A (M, N, D)."""
    delta = delta if delta_weight is None else full_rank(delta, delta_weight)
    wide = (x.to(A.dtype) for x in (u, delta, A.transpose(1, 2), B, C, mix))
    u_wide, delta, A, B, C, mix = wide
    state = None if initial is None else initial.transpose(2, 3)
    discretization = "zoh" if zoh else "euler"
    y, last = _in_torch(
        u_wide, delta, A, B, C, mix, D, delta_bias, lengths, state, discretization, reference.banded_scan
    )
    return y.to(u.dtype), last.transpose(2, 3)


@plain_form("msssm::triton_selective")
def _(*operands: Any) -> tuple[Tensor, ...]:
    with_weight: list[Any] = [*operands[:7], None, *operands[7:]]
    return _plain(*with_weight)
