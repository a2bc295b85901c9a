"""Function transforms, forward mode and second derivatives of operators that only have a backward.

An operator in C++ or Triton has one derivative, its backward. Where another one is asked for, the torch form of the
operator runs instead: the same map in torch operators, which torch differentiates repeatedly and in every mode.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether a transform of `torch.func` (vmap, grad, jvp, ..) or a level of forward mode is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def beyond_first(grad: Tensor) -> bool:
    """Whether a backward, given `grad`, is itself differentiated (`create_graph`), transformed or batched."""
    if torch.compiler.is_compiling():  # compiled code has neither second derivatives nor the older vmap
        return transformed()
    return torch.is_grad_enabled() or transformed() or torch._C._functorch.is_legacy_batchedtensor(grad)


def torch_gradients(
    form: Callable[..., Sequence[Tensor]], inputs: Sequence[Any], grads: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Vector-Jacobian product of a torch form: differentiable, and open to transforms.

    Args:
        form: Function of torch operators.
        inputs: All its arguments.
        grads: Gradients of its results.

    Returns:
        One gradient for each argument, None if it needs none.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views replace the arguments, so that no gradient flows on through one argument into another.
        leaves = [x.view_as(x) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs]
        results = form(*(x if leaf is None else leaf for x, leaf in zip(inputs, leaves, strict=True)))
    pairs = [(y, grad) for y, grad in zip(results, grads, strict=False) if y.requires_grad]
    wanted = [leaf for leaf in leaves if leaf is not None]
    ys, grad_ys = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(ys, wanted, grad_ys, create_graph=create_graph, allow_unused=True))
    return tuple(None if leaf is None else next(found) for leaf in leaves)
