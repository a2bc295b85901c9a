"""MultiresNet's sequence layer: a wavelet-like tree of shared filters, and one weight per band and channel."""

import torch
from torch import Tensor

from msssm.decomposition import MultiScaleDecomposition
from msssm.layer import SequenceLayer
from msssm.scale_mixer import ScaleMixer


class MultiresConv(SequenceLayer):
    """Multiresolution convolution with the "fading" tree and filters shared over levels.

        y = w_0 x + sum_s w_s d^s + w_{S+1} a^S

    Shi et al. 2023, "Sequence Modeling with Multiresolution Convolutional Memory".

    Args:
        d_model: D, channels.
        levels: S; the deepest band sees (K - 1) (2^S - 1) + 1 steps, so about log2(L / (K - 1)) spans the sequence.
        kernel_size: K, taps.
    """

    recomputable = True

    def __init__(self, d_model: int, levels: int = 10, kernel_size: int = 4) -> None:
        """Builds filters and weights. Raises ValueError for an option out of its range."""
        super().__init__(d_model)
        self.decomposition = MultiScaleDecomposition(d_model, levels, kernel_size, shared=True)
        self.mixer = ScaleMixer(d_model, levels + 2, mode="fixed", heads=d_model)
        # As published: U(-1, 1) / sqrt(S + 2), so that the variances of the bands add up to a constant.
        torch.nn.init.uniform_(self.mixer.weight, -((levels + 2) ** -0.5), (levels + 2) ** -0.5)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """Maps x (B, L, D) to y (B, L, D), with `return_state` also the filters' histories; lengths (B,)."""
        lengths = self.check_input(x, lengths)
        return self.decomposition(x, lengths, state, return_state, weights=self.mixer.weight)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Histories of the filters before the first step: zeros."""
        return self.decomposition.initial_state(batch_size)
