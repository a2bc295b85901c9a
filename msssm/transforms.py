"""Function transforms, forward mode and second derivatives of operators that only have a backward.

An operator in C++ or Triton has one derivative, its backward. For any other, its plain form replaces it: the same map
in torch operators, which torch can differentiate repeatedly and in every mode.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Plain = TypeVar("Plain", bound=Callable[..., Any])

_PLAIN: dict[str, Callable[..., Any]] = {}


def transformed() -> bool:
    """Whether a transform of `torch.func` (vmap, grad, jvp, ..) or a level of forward mode is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def beyond_first(grad: Tensor) -> bool:
    """Whether a backward, given `grad`, is itself differentiated (`create_graph`), transformed or batched."""
    if torch.compiler.is_compiling():  # compiled code has neither second derivatives nor the older vmap
        return transformed()
    return torch.is_grad_enabled() or transformed() or torch._C._functorch.is_legacy_batchedtensor(grad)


def plain_form(*operators: str) -> Callable[[Plain], Plain]:
    """Registers a function as the plain form of operators: same arguments, and those results that have gradients."""

    def name(function: Plain) -> Plain:
        _PLAIN.update(dict.fromkeys(operators, function))
        return function

    return name


def plain_gradients(operator: str, inputs: Sequence[Any], grads: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """Vector-Jacobian product of an operator's plain form: differentiable, and open to transforms.

    Args:
        operator: its name.
        inputs: all its arguments.
        grads: gradients of the results of the plain form.

    Returns:
        One gradient for each argument, None if it needs none.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views replace the arguments, so that no gradient flows on through one argument into another.
        leaves = [x.view_as(x) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs]
        results = _PLAIN[operator](*(x if leaf is None else leaf for x, leaf in zip(inputs, leaves, strict=True)))
    pairs = [(y, grad) for y, grad in zip(results, grads, strict=True) if y.requires_grad]
    wanted = [leaf for leaf in leaves if leaf is not None]
    ys, grad_ys = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(ys, wanted, grad_ys, create_graph=create_graph, allow_unused=True))
    return tuple(None if leaf is None else next(found) for leaf in leaves)
