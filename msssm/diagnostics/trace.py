"""A trace of the calls of modules inside a network."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn


class Call(NamedTuple):
    """One call of a module: its path in the network, the module, its positional arguments and its result."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    output: Any


@contextmanager
def trace_calls(model: nn.Module, *kinds: type[nn.Module]) -> Iterator[list[Call]]:
    """Records the calls of all modules of these kinds inside `model`, in the order in which they return."""
    calls: list[Call] = []

    def hook(path: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls.append(Call(path, module, args, output))

        return keep

    hooks = [m.register_forward_hook(hook(path)) for path, m in model.named_modules() if isinstance(m, kinds)]
    try:
        yield calls
    finally:
        for each in hooks:
            each.remove()
