"""Checks of the scans' arguments."""

from typing import Literal

import torch
from torch import Tensor

from msssm.errors import InputError

Discretization = Literal["zoh", "euler"]


def check_discretization(discretization: str) -> None:
    """Raises InputError for an unknown discretization."""
    if discretization not in ("zoh", "euler"):
        raise InputError(f"discretization must be 'zoh' or 'euler', got {discretization!r}")


def expect_dimensions(name: str, x: Tensor, ndim: int) -> torch.Size:
    """Returns the shape of x. Raises ValueError unless it has `ndim` dimensions."""
    # Not InputError: a wrong shape inside a network is a bug.
    if x.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, got shape {tuple(x.shape)}")
    return x.shape


def check_operand(
    name: str, x: Tensor | None, shape: tuple[int, ...], like: Tensor, *, complex_too: bool = False
) -> None:
    """Raises ValueError unless x is None, or floating point, of this shape, and on the device of `like`."""
    if x is None:
        return
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
    if not (x.is_floating_point() or (complex_too and x.is_complex())):
        kind = "floating or complex" if complex_too else "floating"
        raise ValueError(f"{name} must be {kind}, got {x.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, where the input is, got it on {x.device}")
