"""Probes of two properties: a shifted input gives a shifted output, and padding changes nothing."""

from collections.abc import Callable

import torch
from torch import Tensor

from msssm.layer import SequenceLayer


def _relative(actual: Tensor, expected: Tensor) -> float:
    """Error max |actual - expected| / max |expected|; infinite if `actual` is not finite."""
    if not actual.isfinite().all():
        return float("inf")
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return ((actual - expected).abs().max() / scale).item()


@torch.no_grad()
def shift_error(function: Callable[[Tensor], Tensor], x: Tensor, shift: int) -> float:
    """Error of the output when `shift` zero steps precede the input: it should only move by as many steps.

        max |f(0, .., 0, x)[shift:] - f(x)| / max |f(x)|

    For MS-SSM it is of the order of rounding. A network with biases or norms before the layer, or one that attends to
    the zero steps, is not shift-equivariant.

    Args:
        function: (B, L, D) -> (B, L, D).
        x: (B, L, D).
        shift: steps, at least 1.
    """
    late = function(torch.nn.functional.pad(x, (0, 0, shift, 0)))
    return _relative(late[:, shift:], function(x))


@torch.no_grad()
def padding_error(layer: SequenceLayer, x: Tensor, length: int, padding: float = float("nan")) -> float:
    """Largest change of the outputs of `length` true steps by the padding after them, relative to the largest output.

    Args:
        layer: a sequence layer or a backbone, in `eval()`.
        x: (B, L, D).
        length: true steps, 1..L.
        padding: value of the padding.
    """
    alone = layer(x[:, :length])
    padded = x.clone()
    padded[:, length:] = padding
    lengths = torch.full((len(x),), length, device=x.device)
    return _relative(layer(padded, lengths)[:, :length], alone)
