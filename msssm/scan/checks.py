"""Arguments of the scans: what was asked for, and what came."""

from typing import Literal

import torch
from torch import Tensor

from msssm.errors import InputError

Discretization = Literal["zoh", "euler"]


def check_discretization(discretization: str) -> None:
    if discretization not in ("zoh", "euler"):
        raise InputError(f"discretization must be 'zoh' or 'euler', got {discretization!r}")


# A wrong shape within a network is a fault of the program, so no `InputError`.
def expect_dimensions(name: str, x: Tensor, ndim: int) -> torch.Size:
    if x.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, got shape {tuple(x.shape)}")
    return x.shape


def check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")


def check_lengths(lengths: Tensor | None, batch: int, length: int) -> None:
    """Raises ValueError unless `lengths` (B,) are whole numbers in 0..L."""
    if lengths is None:
        return
    if lengths.shape != (batch,) or lengths.dtype != torch.int64:
        raise InputError(
            f"lengths must be {batch} whole numbers (int64), one per row, "
            f"got {lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    # Reading values would stall a GPU, and is not possible while tracing.
    readable = lengths.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and batch and not 0 <= lengths.min() <= lengths.max() <= length:
        raise InputError(f"lengths must lie in 0..{length}, got {lengths.min().item()}..{lengths.max().item()}")
