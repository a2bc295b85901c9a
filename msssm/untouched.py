"""Whether a module is what its class says, so that a fast path that reads its tensors computes what calling it would.

Adapters (LoRA), quantisation, parametrisations, pruning and hooks all change a module without telling those around it.
"""

from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

M = TypeVar("M", bound=nn.Module)

_PLAIN = (Tensor, nn.Parameter)


def untouched(module: nn.Module | None, kind: type[M]) -> TypeGuard[M]:
    """Whether it is of this very class, which a parametrisation or an adapter changes, and nothing stands around its
    forward: no hook, its own or global, and no replacement on the instance."""
    return (
        type(module) is kind
        and not module._forward_pre_hooks
        and not module._forward_hooks
        and not module._backward_pre_hooks
        and not module._backward_hooks
        and "forward" not in vars(module)
        and not _has_any_global_hook()
    )


def plain(x: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether x is float32 numbers of this shape on the CPU, and no subclass (quantised, distributed) of a tensor."""
    return x.shape == shape and x.dtype is torch.float32 and x.is_cpu and type(x) in _PLAIN and not x.is_neg()
