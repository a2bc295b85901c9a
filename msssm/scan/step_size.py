"""Step sizes from what a layer projects: softplus, within limits."""

from torch import Tensor
from torch.nn import functional as F

# So that no parameter value gives 0 / 0 or 0 * inf, and that |Abar| = exp(-delta rate) stays below 1 in float32.
MIN_DELTA, MAX_DELTA = 1e-4, 1e6


def step_size(projected: Tensor, bias: Tensor) -> Tensor:
    """softplus(projected + bias), at least MIN_DELTA and at most MAX_DELTA; shapes broadcast."""
    return F.softplus(projected + bias).clamp(MIN_DELTA, MAX_DELTA)
