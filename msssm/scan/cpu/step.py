"""One step of a multi-scale S6 layer in a single native call, for streaming; without gradients."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from msssm.scan.cpu.library import integers, native, pointers
from msssm.untouched import plain


class StepParameters(NamedTuple):
    """Parameters of one layer, float32 and contiguous: S levels, M = S + 2 bands, K taps, rank R, H mixer heads."""

    low: Tensor  # (S, K, D)
    high: Tensor
    projection: Tensor  # (M (R + 2 N), D)
    delta_weight: Tensor  # (M, R, D)
    delta_bias: Tensor  # (M, D)
    log_rate: Tensor  # (M, D, N)
    skip: Tensor | None  # (M, D)
    mix_weight: Tensor | None  # (M H, D), of a mixer that depends on the input
    mix_bias: Tensor | None  # (M H,)
    fixed: Tensor | None  # (M, H); if all three are None, every weight is 1

    def readable(self, heads: int) -> bool:
        """Whether native code can read all of them in place."""
        levels, taps, channels = self.low.shape
        bands, _, states = self.log_rate.shape
        rank = self.delta_weight.shape[1]
        shapes = (
            (levels, taps, channels),
            (levels, taps, channels),
            (bands * (rank + 2 * states), channels),
            (bands, rank, channels),
            (bands, channels),
            (bands, channels, states),
            (bands, channels),
            (bands * heads, channels),
            (bands * heads,),
            (bands, heads),
        )
        mixes = self.mix_weight is None or self.mix_bias is not None
        return (
            mixes
            and bands == levels + 2
            and all(x is None or (plain(x, shape) and x.is_contiguous()) for x, shape in zip(self, shapes, strict=True))
        )


def multiscale_step(
    x: Tensor,
    filters: tuple[Tensor, ...],
    states: Tensor,
    parameters: StepParameters,
    *,
    heads: int,
    softmax: bool,
    zoh: bool,
    normed: bool,
    delta_limits: tuple[float, float],
    log_rate_limits: tuple[float, float],
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Maps x (B, D), the filters' histories and states (B, M, D, N) to y (B, D), the new histories and states.

    Allocates nothing but these results.
    """
    batch, channels = x.shape
    levels, taps, _ = parameters.low.shape
    rank = parameters.delta_weight.shape[1]
    past = [(taps - 1) * 2**level for level in range(levels)]
    y = x.new_empty(batch, channels)
    moved = x.new_empty(batch, sum(past), channels)
    turned = states.transpose(2, 3)
    following = torch.empty_like(turned)
    switches = int(zoh), int(softmax), int(normed)
    native().msssm_step(
        integers(batch, levels, taps, channels, states.shape[3], rank, heads, *switches, x.stride(0)),
        (ctypes.c_float * 4)(*delta_limits, *log_rate_limits),
        pointers(x, turned, *parameters),
        pointers(*filters),
        integers(*(history.stride(0) for history in filters)),
        pointers(y, moved, following),
    )
    return y, moved.split(past, dim=1), following.transpose(2, 3)


def fits(x: Tensor, filters: tuple[Tensor, ...], states: Tensor, parameters: StepParameters) -> bool:
    """Whether the kernel can read these in place, as it can the results of a scan or a step."""
    batch, (levels, taps, channels) = len(states), parameters.low.shape
    return (
        plain(x, (batch, channels))
        and x.stride(1) == 1
        and plain(states, (batch, *parameters.log_rate.shape))
        and states.transpose(2, 3).is_contiguous()
        and len(filters) == levels
        and all(
            plain(history, (batch, (taps - 1) << level, channels))
            and (history.stride()[1:] == (channels, 1) or not history.numel())
            for level, history in enumerate(filters)
        )
    )
