"""Two promises, tried on a model: a shifted input gives a shifted output, and padding changes nothing."""

from collections.abc import Callable

import torch
from torch import Tensor

from msssm.layer import SequenceLayer


def _relative(actual: Tensor, expected: Tensor) -> float:
    """max |actual - expected| / max |expected|; infinite where `actual` is not finite."""
    if not actual.isfinite().all():
        return float("inf")
    scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return ((actual - expected).abs().max() / scale).item()


@torch.no_grad()
def shift_error(function: Callable[[Tensor], Tensor], x: Tensor, shift: int) -> float:
    """How far `shift` steps of silence in front move the output by anything but `shift` steps.

        max |f(0, .., 0, x)[shift:] - f(x)| / max |f(x)|

    Of the order of rounding for MS-SSM; a network with biases or norms in front of the layer, or one that attends to
    the silent steps, is not equivariant to silence.

    Args:
        function: (B, L, D) -> (B, L, D).
        x: (B, L, D).
        shift: steps, at least 1.
    """
    late = function(torch.nn.functional.pad(x, (0, 0, shift, 0)))
    return _relative(late[:, shift:], function(x))


@torch.no_grad()
def padding_error(layer: SequenceLayer, x: Tensor, length: int, padding: float = float("nan")) -> float:
    """How far the padding behind `length` true steps changes their outputs, relative to the largest of these.

    Args:
        layer: a sequence layer or a backbone, in `eval()`.
        x: (B, L, D).
        length: true steps, 1..L.
        padding: what stands behind them.
    """
    alone = layer(x[:, :length])
    padded = x.clone()
    padded[:, length:] = padding
    lengths = torch.full((len(x),), length, device=x.device)
    return _relative(layer(padded, lengths)[:, :length], alone)
