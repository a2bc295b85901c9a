"""Normalisation over the true positions of padded batches."""

from typing import Literal

import torch
from torch import Tensor, nn

from msssm.errors import InputError
from msssm.padding import mask_padding, position_mask, true_lengths

Norm = Literal["batch", "layer"]


class SequenceNorm(nn.Module):
    """Batch or layer norm of (B, L, D), with learned scale and shift; padding enters no statistic.

    Args:
        d_model: D.
        norm: "batch" (statistics per channel over all true positions, running statistics in `eval()`) or "layer"
            (statistics over D, per position).
    """

    def __init__(self, d_model: int, norm: Norm = "layer") -> None:
        """Builds the norm. Raises ValueError for an unknown one."""
        super().__init__()
        if norm not in ("batch", "layer"):
            raise InputError(f"norm must be 'batch' or 'layer', got {norm!r}")
        self.inner: nn.Module = nn.BatchNorm1d(d_model) if norm == "batch" else nn.LayerNorm(d_model)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalises x (B, L, D), lengths (B,), or one step (B, D); batch norm returns padding as 0."""
        lengths = true_lengths(lengths, x)
        if isinstance(self.inner, nn.LayerNorm):
            normed: Tensor = self.inner(mask_padding(x, lengths))
            return normed
        if lengths is None:
            return self.inner(x.flatten(0, -2)).view_as(x)
        true = torch.nonzero(position_mask(lengths, x.shape[1]).flatten()).squeeze(1)
        normed = self.inner(x.flatten(0, 1)[true])
        return torch.zeros_like(x, dtype=normed.dtype).flatten(0, 1).index_copy(0, true, normed).view_as(x)
