"""Derivatives that a fast operator does not have: function transforms, forward mode, and the second derivative.

An operator in C++ or Triton has one derivative, its backward. Where more is asked for, its plain form stands in: the
same map in torch operators, which torch differentiates as often and in whatever mode it is asked to.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Plain = TypeVar("Plain", bound=Callable[..., Any])

_PLAIN: dict[str, Callable[..., Any]] = {}


def transformed() -> bool:
    """Whether a transform of `torch.func` (vmap, grad, jvp, ..) or a level of forward mode is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def beyond_first() -> bool:
    """In a backward: whether it is itself differentiated (`create_graph`) or transformed."""
    return torch.is_grad_enabled() or transformed()


def plain_form(*operators: str) -> Callable[[Plain], Plain]:
    """Names a function as the plain form of operators: their arguments to those of their results with gradients."""

    def name(function: Plain) -> Plain:
        _PLAIN.update(dict.fromkeys(operators, function))
        return function

    return name


def plain_gradients(operator: str, inputs: Sequence[Any], grads: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The vector-Jacobian product of an operator's plain form: differentiable, and open to transforms.

    Args:
        operator: its name.
        inputs: all its arguments.
        grads: of the results of the plain form.

    Returns:
        one gradient for each argument, None where it is not a tensor of real or complex numbers.
    """
    places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())]

    def outputs(*tensors: Tensor) -> Any:
        given = dict(zip(places, tensors, strict=True))
        return _PLAIN[operator](*(given.get(i, x) for i, x in enumerate(inputs)))

    _, pull_back = torch.func.vjp(outputs, *(inputs[i] for i in places))
    found = dict(zip(places, pull_back(grads), strict=True))
    return tuple(found.get(i) for i in range(len(inputs)))
