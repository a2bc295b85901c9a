"""One table of tolerances: the largest error allowed, relative to the largest expected value."""

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float64)
# A recurrence that decays forgets its rounding: a few dozen stand for outputs and states of any length.
OUTPUT = {dtype: 64 * torch.finfo(dtype).eps for dtype in _DTYPES}
# Gradients of parameters sum over batch, length and channels: a few hundred terms.
GRADIENT = {dtype: 512 * torch.finfo(dtype).eps for dtype in _DTYPES}


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """max |actual - expected| <= tolerance max |expected|; NaN on either side fails."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    if expected.numel():
        wide = torch.complex128 if expected.is_complex() else torch.float64
        error = (actual.detach().to(wide) - expected.detach().to(wide)).abs().max().item()
        scale = expected.detach().to(wide).abs().max().item()
        assert error <= tolerance * scale, f"error {error:.3g} > {tolerance:.3g} * {scale:.3g}"
