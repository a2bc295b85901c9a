"""Step sizes from a layer's projections: product with the low rank, softplus, limits."""

import torch
from torch import Tensor
from torch.nn import functional as F

# So that no parameter value gives 0 / 0 or 0 * inf, and that |Abar| = exp(-delta rate) stays below 1 in float32.
MIN_DELTA, MAX_DELTA = 1e-4, 1e6


def full_rank(low_rank: Tensor, weight: Tensor) -> Tensor:
    """Multiplies low_rank (B, L, M, R) by weight (M, R, D), one matrix product per band: (B, L, M, D)."""
    return torch.einsum("blmr,mrd->blmd", low_rank, weight)


def step_size(projected: Tensor, bias: Tensor) -> Tensor:
    """Computes softplus(projected + bias), at least MIN_DELTA and at most MAX_DELTA; shapes broadcast."""
    return F.softplus(projected + bias).clamp(MIN_DELTA, MAX_DELTA)
