"""Selective scans: check of the arguments, and the call of the chosen backend."""

import torch
from torch import Tensor

from msssm.padding import true_lengths
from msssm.scan.checks import Discretization, check_discretization, check_operand, expect_dimensions
from msssm.scan.delta import full_rank
from msssm.scan.dispatch import Backend, choose
from msssm.scan.mixing import as_heads, check_mix
from msssm.scan.selective import cpu
from msssm.scan.selective import torch as torch_form
from msssm.scan.selective.check import fault
from msssm.scan.selective.operands import Operands


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
    """Runs one selective state space model per band and mixes their outputs (MS-SSM, sections 3.2 and 3.3).

        h^s_t = exp(delta^s_t A^s) h^s_{t-1} + Bbar^s_t u^s_t,   y_t = sum_s mix_t[s] (<C^s_t, h^s_t> + D^s u^s_t)

    Args:
        bands: u (B, L, M, D), the decomposed input, finest band first.
        delta: step sizes (B, L, M, D), not negative; a step of 0 does not change the state. With a `delta_weight`,
            their low-rank factor (B, L, M, R).
        A: negative decay rates (M, D, N).
        B: input weights (B, L, M, N).
        C: output weights (B, L, M, N).
        mix: scale mixer weights (B, L, M), or (B, L, M, H) with one weight per head of D / H channels.
        D: skip weights (M, D).
        delta_weight: (M, R, D); if given, delta @ delta_weight replaces delta.
        delta_bias: (M, D); if given, the step sizes are softplus(delta + delta_bias), at least 1e-4 and at most 1e6.
        lengths: true length of each row (B,). Padding past it is not read, does not change the state, and gives y = 0.
        initial_state: (B, M, D, N); None for zeros.
        return_state: also return the state after the last step, (B, M, D, N).
        discretization: "zoh" (Bbar = (exp(delta A) - 1) / A B) or "euler" (Bbar = delta B, as in Mamba).
        backend: "cpu" (native, float32), "triton" (GPU), "torch" (blocked, recomputing backward), "reference"
            (sequential), or "auto": the one in the environment variable MSSSM_BACKEND, or else the fastest that is
            right here. The first "auto" of a process on a GPU compares the Triton kernels with the reference.

    Returns:
        y (B, L, D) in the dtype of `bands`, and the state in float32 (float64 for float64 inputs).

        Second derivatives (`create_graph`) run through the sequential reference, and so do transforms of `torch.func`
        and forward mode under "auto"; other backends refuse them.

    Raises:
        ValueError: shapes do not fit together, or a discretization or backend is unknown or cannot run here.
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
    operands = Operands(bands, delta, A, B, C, as_heads(mix), D, delta_weight, delta_bias, lengths, initial_state)
    y, state = _run(operands, discretization, backend)
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
    """Runs a selective state space model (Gu & Dao 2023, algorithm 2): `multiscale_scan` with a single band.

    Args:
        u: input (B, L, D).
        delta: step sizes (B, L, D), not negative.
        A: negative decay rates (D, N).
        B: input weights (B, L, N).
        C: output weights (B, L, N).
        D: skip weights (D,).
        delta_bias: (D,); if given, the step sizes are softplus(delta + delta_bias), at least 1e-4 and at most 1e6.
        lengths: true length of each row (B,). Padding past it is not read, does not change the state, and gives y = 0.
        initial_state: (B, D, N); None for zeros.
        return_state: also return the state after the last step, (B, D, N).
        discretization: "zoh" or "euler", as in `multiscale_scan`.
        backend: "auto", "cpu", "triton", "torch" or "reference", as in `multiscale_scan`.

    Returns:
        y (B, L, D) in the dtype of `u`, and the state in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes do not fit together, or a discretization or backend is unknown or cannot run here.
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
    operands = Operands(u, delta, A.unsqueeze(0), B, C, one_band, D, None, delta_bias, lengths, initial_state)
    y, state = _run(operands, discretization, backend)
    return (y, state.squeeze(1)) if return_state else y


def _run(operands: Operands, discretization: str, backend: str) -> tuple[Tensor, Tensor]:
    """Mixed outputs (B, L, D) in the dtype of u, and the last state in at least float32."""
    check_discretization(discretization)
    u = operands.u
    # Decays and states lose their meaning in half precision (products of many factors close to 1).
    dtype = torch.promote_types(torch.float32, u.dtype)
    backend = choose(backend, u.device, dtype, "reference", fault)
    if operands.delta_weight is not None and backend == "triton":  # the others multiply as they read
        operands = operands._replace(delta=full_rank(operands.delta, operands.delta_weight), delta_weight=None)
    with torch.autocast(u.device.type, enabled=False):
        if backend == "triton":  # which widens as it reads what varies with time
            from msssm.scan.selective import triton  # it exists for Linux alone

            return triton.scan(operands.to(dtype, "u", "delta", "B", "C", "mix"), discretization)
        wide = operands.to(dtype)
        if backend == "cpu":
            y, last, _ = cpu.scan(wide, discretization)
        elif backend == "torch":
            y, last = torch_form.multiscale_scan(wide, discretization)
        else:
            y, last = torch_form.sequential_scan(wide, discretization)
    return y.to(u.dtype), last
