"""Checks that a module is exactly what its class says, so that its tensors may be read in place of calling it.

Adapters (LoRA), quantisation, parametrisations, pruning and hooks change a module without notice to its callers.
"""

from typing import TypeGuard, TypeVar

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

M = TypeVar("M", bound=nn.Module)


def untouched(module: nn.Module | None, kind: type[M]) -> TypeGuard[M]:
    """Whether `module` has exactly this class and its forward.

    A parametrisation or an adapter changes the class; a hook (its own or a global one) or a replacement on the instance
    changes the forward.
    """
    return (
        type(module) is kind
        and not module._forward_pre_hooks
        and not module._forward_hooks
        and not module._backward_pre_hooks
        and not module._backward_hooks
        and "forward" not in vars(module)
        and not _has_any_global_hook()
    )
