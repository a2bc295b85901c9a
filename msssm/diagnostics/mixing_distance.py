"""The mean mixing distance, how far back the last output looks (MS-SSM, table 6)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from msssm.errors import InputError


class Mixing(NamedTuple):
    """Mixing distance of the C chosen output channels.

    Attributes:
        distance: d (C,), in steps; 0 for an output that no input reaches.
        profile: (L,) |J| at lags 0..L-1, normalised to sum 1 in each channel, mean over channels.
    """

    distance: Tensor
    profile: Tensor


def mixing_distance(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    channels: Sequence[int] | None = None,
    chunk: int = 16,
) -> Mixing:
    """Mean distance of information to the last step m = L - 1, weighted by the input-output Jacobian.

        d = sum_n |J_mn| (m - n) / sum_k |J_mk|

    The paper leaves open what |J_mn| of an output channel is across input channels; here it is the sum of
    |dy_m / dx_n| over all of them. The result is exact, by one vector-Jacobian
    product per output channel; `chunk` of them run as one batch, with the memory of `chunk` rows.

    Args:
        function: (B, L, D) -> (B, L, D), without coupling between rows (batch norm in `eval()`): a sequence layer, a
            block or a whole backbone.
        x: one input, (L, D).
        channels: output channels; None for all.
        chunk: channels at a time.

    Raises:
        ValueError: x has another shape.
    """
    if x.ndim != 2:
        raise InputError(f"x must be one input of shape (L, D), got shape {tuple(x.shape)}")
    length, width = x.shape
    chosen = torch.arange(width) if channels is None else torch.as_tensor(channels)
    lags = torch.arange(length - 1, -1, -1, device=x.device)
    distances, profile = [], x.new_zeros(length)
    for part in chosen.split(chunk):
        copies = x.detach().repeat(len(part), 1, 1).requires_grad_()
        rows = torch.arange(len(part))
        with torch.enable_grad():
            last = function(copies)[rows, -1, part]
            (jacobian,) = torch.autograd.grad(last.sum(), copies)
        influence = jacobian.abs().sum(2)
        share = influence / influence.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        distances.append((share * lags).sum(1))
        profile += share.sum(0)
    return Mixing(torch.cat(distances), profile.flip(0) / len(chosen))
