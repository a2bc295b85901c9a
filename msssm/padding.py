"""Rows of different lengths in one batch: masks, and the mean over the true positions."""

from typing import Any

import torch
from torch import Tensor

from msssm.errors import InputError
from msssm.transforms import beyond_first, transformed


def true_lengths(lengths: Any, x: Tensor) -> Tensor | None:
    """Checks the lengths (B,) of the rows of x (B, L, ...), and returns them as int64, contiguous, on the device of x.

    Integers of any dtype, layout and device are accepted. If the values cannot be read, as in compiled code, under a
    transform, or on a GPU, which it would synchronise, they are clamped to 0..L.

    Raises:
        InputError: they have another shape, are no integers, or lie outside of 0..L.
    """
    if lengths is None:
        return None
    batch, length = x.shape[:2]
    if not isinstance(lengths, Tensor):
        raise InputError(f"lengths must be a tensor of {batch} whole numbers, got {type(lengths).__name__}")
    if lengths.shape != (batch,) or lengths.dtype == torch.bool or lengths.is_floating_point() or lengths.is_complex():
        raise InputError(
            f"lengths must be {batch} whole numbers, one per row, got {lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    readable = lengths.device.type == "cpu" and not torch.compiler.is_compiling() and not transformed()
    lengths = lengths.to(x.device, torch.int64).contiguous()
    if not readable:
        return lengths.clamp(0, length)
    values = lengths.tolist()  # faster than two reductions: every module checks its lengths
    if batch and not 0 <= min(values) <= max(values) <= length:
        raise InputError(f"lengths must lie in 0..{length}, got {min(values)}..{max(values)}")
    return lengths


def position_mask(lengths: Tensor, length: int) -> Tensor:
    """Mask (B, L) of the positions within the lengths (B,)."""
    return torch.arange(length, device=lengths.device) < lengths.unsqueeze(1)


def mask_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Replaces padding past each row's length in x (B, L, ...), NaN included, by 0."""
    if lengths is None:
        return x
    mask = position_mask(lengths, x.shape[1]).view(*x.shape[:2], *(1,) * (x.ndim - 2))
    if not x.is_cpu or torch.compiler.is_compiling() or transformed() or not x.is_floating_point():
        return torch.where(mask, x, 0)
    masked: Tensor = _Masked.apply(x, mask)
    return masked


# Whole numbers by their bytes.
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Masked(torch.autograd.Function):
    """`torch.where(mask, x, 0)` of floating numbers on a CPU, by their bits, NaN included."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return _masked(x, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.where(mask, grad, 0) if beyond_first(grad) else _masked(grad, mask), None


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    word = _WORDS[x.element_size()]
    return (x.view(word) & -mask.to(word)).view(x.dtype)  # -1 has all bits


def masked_mean(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean over the true positions of each row, x (B, L, D), lengths (B,) -> (B, D); 0 for a row of length 0."""
    if lengths is None:
        return x.mean(1) if x.shape[1] else x.sum(1)
    return mask_padding(x, lengths).sum(1) / lengths.clamp(min=1).unsqueeze(1)


def last_position(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Last true position of each row, x (B, L, D), lengths (B,) -> (B, D); 0 for a row of length 0."""
    if x.shape[1] == 0:
        return x.sum(1)
    if lengths is None:
        return x[:, -1]
    last = x[torch.arange(len(x), device=x.device), lengths.clamp(min=1) - 1]
    return last.masked_fill((lengths == 0).unsqueeze(1), 0)


def last_positions(x: Tensor, lengths: Tensor | None, count: int) -> Tensor:
    """The `count` rows of history that end at each row's length.

    x (B, count + L, ...) is `count` older positions followed by L new ones, of which `lengths` (B,) are true;
    the result is (B, count, ...).
    """
    if lengths is None:
        return x[:, x.shape[1] - count :]
    positions = lengths.unsqueeze(1) + torch.arange(count, device=x.device)
    return x[torch.arange(len(x), device=x.device).unsqueeze(1), positions]
