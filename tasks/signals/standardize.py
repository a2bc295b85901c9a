"""Standardisation as modules, whose constants are in the checkpoint of the network."""

import torch
from torch import Tensor, nn


class _Moments(nn.Module):
    mean: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def take(self, mean: Tensor, scale: Tensor) -> None:
        """Takes mean and scale (size,) of the training data."""
        self.mean.copy_(mean)
        self.scale.copy_(scale)


class Standardize(_Moments):
    """Subtracts a mean and divides by a scale, for each channel.

    Args:
        size: number of channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (..., size) to (x - mean) / scale."""
        return (x - self.mean) / self.scale


class Restore(_Moments):
    """Returns standardised numbers to their own unit.

    Args:
        size: how many there are.
    """

    def forward(self, z: Tensor) -> Tensor:
        """Maps z (..., size) to mean + scale z."""
        return self.mean + self.scale * z.to(self.scale.dtype)
