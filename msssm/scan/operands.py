"""Tensors whose memory kernels read through pointers: their schema, and checks of shape, dtype, device and strides."""

from collections.abc import Sequence

import torch
from torch import Tensor

from msssm.errors import InputError

FLOAT32 = (torch.float32,)
# Kernels widen these to float32 as they read.
HALF_OR_FULL = (torch.float32, torch.float16, torch.bfloat16)
WHOLE = (torch.int64,)
CPU = torch.device("cpu")


def schema(operands: type) -> str:
    """Arguments of an operator whose tensors a NamedTuple describes, for `torch.library`."""
    fields = operands.__annotations__.items()
    return ", ".join(f"{'Tensor' if kind is Tensor else 'Tensor?'} {name}" for name, kind in fields)


def dense(
    x: Tensor, shape: Sequence[int], dtypes: Sequence[torch.dtype] = FLOAT32, device: torch.device = CPU
) -> Tensor:
    """Returns x, copied unless it is contiguous.

    Raises:
        InputError: x has another shape, dtype or device.
    """
    return _checked(x, shape, dtypes, device).contiguous()


def dense_or_none(
    x: Tensor | None, shape: Sequence[int], dtypes: Sequence[torch.dtype] = FLOAT32, device: torch.device = CPU
) -> Tensor | None:
    """Applies `dense` to an optional tensor."""
    return None if x is None else dense(x, shape, dtypes, device)


def strided(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns x, copied unless its last dimension is contiguous; float32 on a CPU. Raises as `dense`."""
    return inner_contiguous(_checked(x, shape, FLOAT32, CPU))


def inner_contiguous(x: Tensor) -> Tensor:
    """Returns x, copied unless its last dimension is contiguous."""
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()


def _checked(x: Tensor, shape: Sequence[int], dtypes: Sequence[torch.dtype], device: torch.device) -> Tensor:
    if x.shape != tuple(shape) or x.dtype not in dtypes or x.device != device:
        raise InputError(
            f"a kernel takes {' or '.join(map(str, dtypes))} of shape {tuple(shape)} on {device}, "
            f"got {x.dtype} of shape {tuple(x.shape)} on {x.device}"
        )
    return x
