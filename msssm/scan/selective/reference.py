"""The sequential selective scan in any dtype, against which every other form is tested."""

import torch
from torch import Tensor


def banded_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    discretization: str,
) -> tuple[Tensor, Tensor]:
    """Runs one diagonal state space model per band and channel, step by step.

    For every band m, channel d and state n, with h_{-1} = `state`,

        a_t = exp(delta_t A),   h_t = a_t h_{t-1} + b_t u_t,   y_t = sum_n C_t h_t,

    where b_t = (a_t - 1) / A * B_t under zero-order hold and b_t = delta_t B_t under Euler (Gu & Dao 2023, eq. 4).

    Shapes: u, delta (B, L, M, D); A (M, D, N); B, C (B, L, M, N); state (B, M, D, N).
    Returns y (B, L, M, D) and the last state (B, M, D, N).
    """
    h = state
    outputs = []
    # unbind, not indexing: the backward of x[:, t] writes a whole zero tensor for each t.
    for u_t, delta_t, B_t, C_t in zip(u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        exponent = delta_t[..., None] * A
        if discretization == "zoh":
            gain = torch.expm1(exponent) / A
        else:
            gain = delta_t[..., None].expand_as(exponent)
        h = torch.exp(exponent) * h + gain * B_t[:, :, None, :] * u_t[..., None]
        outputs.append((h * C_t[:, :, None, :]).sum(-1))
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(u)
    return y, h
