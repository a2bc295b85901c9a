"""Tensors as a kernel reads them: what its pointers point to is checked, or made right, here and nowhere else."""

from collections.abc import Sequence

import torch
from torch import Tensor

from msssm.errors import InputError

FLOAT32 = (torch.float32,)
# What a kernel widens as it reads.
HALF_OR_FULL = (torch.float32, torch.float16, torch.bfloat16)
WHOLE = (torch.int64,)
CPU = torch.device("cpu")


def dense(
    x: Tensor, shape: Sequence[int], dtypes: Sequence[torch.dtype] = FLOAT32, device: torch.device = CPU
) -> Tensor:
    """x, contiguous: itself where it is, else a copy.

    Raises:
        InputError: another shape, dtype or device.
    """
    return _checked(x, shape, dtypes, device).contiguous()


def dense_or_none(
    x: Tensor | None, shape: Sequence[int], dtypes: Sequence[torch.dtype] = FLOAT32, device: torch.device = CPU
) -> Tensor | None:
    """`dense`, of what may be absent."""
    return None if x is None else dense(x, shape, dtypes, device)


def strided(x: Tensor, shape: Sequence[int]) -> Tensor:
    """x, float32 on the CPU with its last dimension contiguous, whatever the other strides. Raises as `dense`."""
    return inner_contiguous(_checked(x, shape, FLOAT32, CPU))


def inner_contiguous(x: Tensor) -> Tensor:
    """x itself where its last dimension is contiguous, else a copy."""
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()


def _checked(x: Tensor, shape: Sequence[int], dtypes: Sequence[torch.dtype], device: torch.device) -> Tensor:
    if x.shape != tuple(shape) or x.dtype not in dtypes or x.device != device:
        raise InputError(
            f"a kernel takes {' or '.join(map(str, dtypes))} of shape {tuple(shape)} on {device}, "
            f"got {x.dtype} of shape {tuple(x.shape)} on {x.device}"
        )
    return x
