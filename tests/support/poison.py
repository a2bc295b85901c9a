"""Memory that nobody has written is NaN, or the largest whole number: what a kernel leaves out shows in its result."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import pytest
import torch

ALLOCATORS = [
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch, "empty_permuted"),
    (torch.Tensor, "new_empty"),
    (torch.Tensor, "new_empty_strided"),
    (np, "empty"),
    (np, "empty_like"),
]


def _fill(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        if x.dtype.kind in "fc":
            x.fill(complex(np.nan, np.nan) if x.dtype.kind == "c" else np.nan)
        elif x.dtype.kind in "iu":
            x.fill(np.iinfo(x.dtype).max)
    elif not torch.compiler.is_compiling():
        with torch.no_grad():
            if x.is_floating_point() or x.is_complex():
                x.fill_(complex(torch.nan, torch.nan) if x.is_complex() else torch.nan)
            elif x.dtype != torch.bool and not x.is_quantized:
                x.fill_(torch.iinfo(x.dtype).max)
    return x


def _poisoned(allocate: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(allocate)
    def filled(*args: Any, **options: Any) -> Any:
        return _fill(allocate(*args, **options))

    return filled


def poison(patch: pytest.MonkeyPatch) -> None:
    """Replaces each allocator by one that fills."""
    for owner, name in ALLOCATORS:
        patch.setattr(owner, name, _poisoned(getattr(owner, name)))
