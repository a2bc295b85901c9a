"""Scans on a GPU, in Triton, which is imported with the first scan: it only exists for Linux."""

import importlib.util

from torch import Tensor


def available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def multiscale_scan(
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
) -> tuple[Tensor, Tensor]:
    """Runs the fused recurrence, skip and mix of `msssm.scan.multiscale_scan`.

    Each of u, delta, B, C and mix (B, L, M, H) is float32, float16 or bfloat16; the others are float32.
    Returns y (B, L, D) in the dtype of u, and the last state (B, M, D, N) in float32.
    """
    from msssm.scan.triton.selective import scan

    return scan(u, delta, A, B, C, mix, D, delta_bias, lengths, initial_state, zoh=discretization == "zoh")


def lti_scan(
    u: Tensor,
    decay: Tensor,
    weight: Tensor,
    mix: Tensor,
    D: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Runs the fused h_t = decay h_{t-1} + u_t,  y_t = sum_m mix_t[m] (Re sum_n weight_n h_t + D u_t).

    u and mix (B, L, M, H) are float32, float16 or bfloat16; decay and weight (M, D, N) and the initial state
    (B, M, D, N) are all float32 or all complex64. Returns y (B, L, D) in the dtype of u, and the last state.
    """
    from msssm.scan.triton.lti import scan

    return scan(u, decay, weight, mix, D, lengths, initial_state)
