"""The scale mixer: the weight of each band at each time step."""

from typing import Literal

import torch
from torch import Tensor, nn

from msssm.errors import InputError

Mixer = Literal["input", "fixed", "softmax", "sum"]


class ScaleMixer(nn.Module):
    """Weights E_t over the bands (MS-SSM, section 3.3 and, for the variants, table 5).

    - "input": E_t = W x_t + b, linear without a softmax (the paper's).
    - "softmax": its softmax over bands.
    - "fixed": learned, the same at every time step.
    - "sum": all ones.

    Args:
        d_model: D.
        bands: M.
        mode: the variant.
        heads: H, groups of D / H channels with weights of their own; 1 shares the weights over all channels.
        init: initial bias, and initial value of "fixed". With 1 the mixer starts near the plain sum.
    """

    def __init__(self, d_model: int, bands: int, mode: Mixer = "input", heads: int = 1, init: float = 1.0) -> None:
        """Builds the mixer. Raises ValueError for an unknown mode, or heads that do not divide d_model."""
        super().__init__()
        if mode not in ("input", "fixed", "softmax", "sum"):
            raise InputError(f"mixer must be 'input', 'fixed', 'softmax' or 'sum', got {mode!r}")
        if heads < 1 or d_model % heads:
            raise InputError(f"mixer_heads must divide d_model = {d_model}, got {heads}")
        self.bands, self.mode, self.heads = bands, mode, heads
        if mode in ("input", "softmax"):
            self.projection = nn.Linear(d_model, bands * heads)
            nn.init.constant_(self.projection.bias, init)
        elif mode == "fixed":
            self.weight = nn.Parameter(torch.full((bands, heads), init))

    def forward(self, x: Tensor) -> Tensor:
        """Computes the weights (B, L, M, H) from the raw input x (B, L, D), or (B, M, H) from (B, D)."""
        if self.mode == "sum":
            return x.new_ones(()).expand(*x.shape[:-1], self.bands, self.heads)
        if self.mode == "fixed":
            return self.weight.expand(*x.shape[:-1], -1, -1)
        weights = self.projection(x).unflatten(-1, (self.bands, self.heads))
        return weights.softmax(-2) if self.mode == "softmax" else weights
