"""The sequential time-invariant scan in any dtype, against which every other form is tested."""

import torch
from torch import Tensor


def banded_lti(u: Tensor, decay: Tensor, weight: Tensor, mask: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """Runs time-invariant models, h_t = decay h_{t-1} + u_t, y_t = Re sum_n weight h_t, step by step.

    Shapes: u (B, L, M, D); decay, weight (M, D, N) and state (B, M, D, N) real or complex; mask (B, L), False where
    the state does not change. Returns y (B, L, M, D) and the last state (B, M, D, N).
    """
    h = state
    outputs = []
    for t, u_t in enumerate(u.unbind(1)):
        advanced = decay * h + u_t[..., None]
        h = advanced if mask is None else torch.where(mask[:, t, None, None, None], advanced, h)
        y_t = (weight * h).sum(-1)
        outputs.append(y_t.real if y_t.is_complex() else y_t)
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(u)
    return y, h
