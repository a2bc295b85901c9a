"""Initial values of the state space models: the diagonal per band, and the step size."""

import math
from typing import Literal

import torch
from torch import Tensor

from msssm.errors import InputError

Initialization = Literal["scale", "mamba"]


def scale_dependent_A(levels: int, state_size: int) -> Tensor:
    """The union over bands is S4D-real of size (S + 2) N; the coarsest band owns the slowest decays -1..-N.

        A^s_n = -(N (S + 1 - s) + n + 1),   s = 0..S+1 (finest first),   n = 0..N-1

    MS-SSM, section 3.4, with the range shifted by one: as printed, it gives the coarsest band A > 0, which diverges;
    the paper's figure 2 agrees with this form.

    Args:
        levels: S, levels of the decomposition.
        state_size: N, states per band.

    Returns:
        A (S + 2, N), negative.
    """
    coarseness = torch.arange(levels + 1, -1, -1.0).unsqueeze(1)
    return -(state_size * coarseness + torch.arange(1.0, state_size + 1))


def initial_A(bands: int, state_size: int, initialization: Initialization) -> Tensor:
    """Real diagonals per band (M, N): scale-dependent, or Mamba's -1..-N in every band.

    Raises:
        ValueError: an unknown initialization.
    """
    if initialization == "scale":
        return scale_dependent_A(bands - 2, state_size)
    if initialization == "mamba":
        return -torch.arange(1.0, state_size + 1).repeat(bands, 1)
    raise InputError(f"initialization must be 'scale' or 'mamba', got {initialization!r}")


def initial_delta(shape: tuple[int, ...], dt_min: float, dt_max: float, dt_init: float | None) -> Tensor:
    """Step sizes, log-uniform in [dt_min, dt_max] (Gu et al. 2022), or all equal to dt_init.

    Raises:
        ValueError: a range that is empty or not positive.
    """
    if dt_init is not None:
        if dt_init <= 0:
            raise InputError(f"dt_init must be positive, got {dt_init}")
        return torch.full(shape, dt_init)
    if not 0 < dt_min <= dt_max:
        raise InputError(f"dt_min and dt_max must satisfy 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
    return torch.exp(math.log(dt_min) + torch.rand(shape) * math.log(dt_max / dt_min))


def inverse_softplus(x: Tensor) -> Tensor:
    """The y with softplus(y) = x > 0, without overflow."""
    return x + torch.log(-torch.expm1(-x))
