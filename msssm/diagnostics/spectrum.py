"""Largest eigenvalues of the recurrences, and receptive fields of the filters."""

import torch
from torch import Tensor

from msssm.decomposition import MultiScaleDecomposition
from msssm.ssm import S4, S6


@torch.no_grad()
def largest_eigenvalue(ssm: S6 | S4, x: Tensor | None = None) -> Tensor:
    """Largest |Abar| = |exp(Delta A)| of each band, (M,), over channels, modes and the steps of an input (B, L, D).

    Without an input the step sizes are those of a zero input. The recurrence contracts if it is below 1; the margin of
    stability is 1 minus it.
    """
    delta = ssm.delta(x)
    smallest = delta.amin((0, 1)) if delta.ndim == 4 else delta
    rate = -ssm.diagonal().real
    return torch.exp(-smallest * rate.amin(2)).amax(1)


def receptive_field(decomposition: MultiScaleDecomposition) -> Tensor:
    """Steps that each band's filters see, (M,) int64, finest band first.

    They are 1 for the input, and 1 + (K - 1)(2^s - 1) for detail s and for the approximation of level s = S.
    """
    levels = torch.arange(decomposition.levels + 1)
    fields = 1 + (decomposition.kernel_size - 1) * (2**levels - 1)
    return torch.cat((fields, fields[-1:]))
