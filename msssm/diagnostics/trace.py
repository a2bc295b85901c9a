"""What the modules of a network are given while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn


class Call(NamedTuple):
    """One call of a module: its path in the network, itself, its positional arguments and what it returned."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    output: Any


@contextmanager
def trace_calls(model: nn.Module, *kinds: type[nn.Module]) -> Iterator[list[Call]]:
    """The calls of all modules of these kinds below `model`, in the order in which they return, until it ends."""
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
