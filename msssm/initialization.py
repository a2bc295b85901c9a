"""Initial values of the state space models: the diagonal of each band, and the step sizes."""

import math
from typing import Literal

import torch
from torch import Tensor

from msssm.errors import InputError

Initialization = Literal["scale", "mamba"]


def scale_dependent_A(levels: int, state_size: int) -> Tensor:
    """Scale-dependent diagonal (MS-SSM, section 3.4): the coarser the band, the slower its decays.

        A^s_n = -(N (S + 1 - s) + n + 1),   s = 0..S+1 (finest first),   n = 0..N-1

    The union over bands is S4D-real of size (S + 2) N. The range is shifted by one from the printed formula, which
    gives the coarsest band A > 0 and diverges; the paper's figure 2 agrees with this form.

    Args:
        levels: S, levels of the decomposition.
        state_size: N, states per band.

    Returns:
        A (S + 2, N), negative.
    """
    coarseness = torch.arange(levels + 1, -1, -1.0).unsqueeze(1)
    return -(state_size * coarseness + torch.arange(1.0, state_size + 1))


def initial_A(bands: int, state_size: int, initialization: Initialization) -> Tensor:
    """Real diagonals (M, N): scale-dependent ("scale"), or -1..-N in every band ("mamba").

    Raises:
        ValueError: the initialization is unknown.
    """
    if initialization == "scale":
        return scale_dependent_A(bands - 2, state_size)
    if initialization == "mamba":
        return -torch.arange(1.0, state_size + 1).repeat(bands, 1)
    raise InputError(f"initialization must be 'scale' or 'mamba', got {initialization!r}")


def initial_delta(shape: tuple[int, ...], dt_min: float, dt_max: float, dt_init: float | None) -> Tensor:
    """Random step sizes, log-uniform in [dt_min, dt_max] (Gu et al. 2022), or all equal to dt_init.

    Raises:
        ValueError: the range is empty or not positive.
    """
    if dt_init is not None:
        if dt_init <= 0:
            raise InputError(f"dt_init must be positive, got {dt_init}")
        return torch.full(shape, dt_init)
    if not 0 < dt_min <= dt_max:
        raise InputError(f"dt_min and dt_max must satisfy 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
    return torch.exp(math.log(dt_min) + torch.rand(shape) * math.log(dt_max / dt_min))


def inverse_softplus(x: Tensor) -> Tensor:
    """Inverse of softplus for x > 0, without overflow."""
    return x + torch.log(-torch.expm1(-x))
