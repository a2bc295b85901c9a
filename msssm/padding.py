"""Rows of different lengths in one batch: masks, and the mean over the true positions."""

import torch
from torch import Tensor


def position_mask(lengths: Tensor, length: int) -> Tensor:
    """True where a position lies within its row. lengths (B,) -> (B, L) bool."""
    return torch.arange(length, device=lengths.device) < lengths.unsqueeze(1)


def zero_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (B, L, ...) with whatever lies past a row's length, NaN included, replaced by 0."""
    if lengths is None:
        return x
    mask = position_mask(lengths, x.shape[1])
    return x.masked_fill(~mask.view(*mask.shape, *(1,) * (x.ndim - 2)), 0)


def masked_mean(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean over the true positions of each row. x (B, L, D), lengths (B,) -> (B, D); a row of length 0 gives 0."""
    if lengths is None:
        return x.mean(1)
    return zero_padding(x, lengths).sum(1) / lengths.clamp(min=1).unsqueeze(1)


def last_position(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The last true position of each row. x (B, L, D), lengths (B,) -> (B, D); a row of length 0 gives 0."""
    if lengths is None:
        return x[:, -1]
    last = x[torch.arange(len(x), device=x.device), lengths.clamp(min=1) - 1]
    return last.masked_fill((lengths == 0).unsqueeze(1), 0)


def last_positions(x: Tensor, lengths: Tensor | None, count: int) -> Tensor:
    """The `count` rows of history that end at each row's length.

    x (B, count + L, ...) is `count` older positions followed by L new ones, of which `lengths` (B,) are true;
    the result is (B, count, ...).
    """
    if lengths is None:
        return x[:, x.shape[1] - count :]
    positions = lengths.unsqueeze(1) + torch.arange(count, device=x.device)
    return x[torch.arange(len(x), device=x.device).unsqueeze(1), positions]
