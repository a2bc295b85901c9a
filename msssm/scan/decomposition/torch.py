"""The decomposition in torch operators, of any dtype, device and order of differentiation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from msssm.padding import last_positions, mask_padding


def dilated_convolution(x: Tensor, taps: Tensor, dilation: int) -> Tensor:
    """Causal depthwise convolution, y[t] = sum_l x[t - dilation l] taps[l].

    Args:
        x: (B, R + L, D): R = (K - 1) dilation positions of history, then L new ones.
        taps: (K, D).
        dilation: Steps between taps.

    Returns:
        y (B, L, D).
    """
    last = (len(taps) - 1) * dilation
    length = x.shape[1] - last
    y = x[:, last:] * taps[0]
    for lag, tap in zip(range(dilation, last + 1, dilation), taps[1:], strict=True):
        y = torch.addcmul(y, x[:, last - lag : last - lag + length], tap)
    return y


def bands_and_histories(
    x: Tensor, low: Tensor, high: Tensor, state: Sequence[Tensor], lengths: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Bands (B, L, S + 2, D) of x (B, L, D), and the new histories of all levels."""
    approximation = mask_padding(x, lengths)
    finer, histories = [approximation], []
    for level, history in enumerate(state):
        extended = torch.cat((history.to(x.dtype), approximation), dim=1)
        histories.append(last_positions(extended, lengths, history.shape[1]))
        finer.append(dilated_convolution(extended, high[level], 2**level))
        approximation = dilated_convolution(extended, low[level], 2**level)
    return mask_padding(torch.stack((*finer, approximation), dim=2), lengths), tuple(histories)


def weighted_sum(bands: Tensor, weights: Tensor) -> Tensor:
    """Sum of the bands (B, L, M, D) times weights (M, D)."""
    return (bands * weights.to(bands.dtype)).sum(2)


def decomposition(
    x: Tensor, low: Tensor, high: Tensor, history: Tensor | None, lengths: Tensor | None, return_state: bool = True
) -> tuple[Tensor, Tensor]:
    """Computes `msssm.scan.decomposition.cpu.decomposition`, whose histories are concatenated."""
    levels, taps, channels = low.shape
    rows = [(taps - 1) * 2**level for level in range(levels)]
    past = x.new_zeros(len(x), sum(rows), channels) if history is None else history
    bands, histories = bands_and_histories(x, low, high, past.split(rows, dim=1), lengths)
    return bands, torch.cat([x[:, :0], *(histories if return_state else ())], dim=1)


def weighted_decomposition(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    weights: Tensor,
    history: Tensor | None,
    lengths: Tensor | None,
    return_state: bool = True,
) -> tuple[Tensor, Tensor]:
    """Computes `msssm.scan.decomposition.cpu.weighted_decomposition`."""
    bands, last = decomposition(x, low, high, history, lengths, return_state)
    return weighted_sum(bands, weights), last
