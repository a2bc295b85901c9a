"""The native decomposition, and the weighted sum of its bands: `decomposition.cpp` as operators, float32 only."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from msssm.scan.csrc.library import integers, native, pointer, pointers, strides
from msssm.scan.decomposition import torch as torch_form
from msssm.scan.operands import WHOLE, dense, dense_or_none, inner_contiguous, strided
from msssm.transforms import beyond_first, torch_gradients


def _sizes(x: Tensor, low: Tensor) -> Any:
    batch, length, channels = x.shape
    return integers(batch, length, low.shape[0], low.shape[1], channels, torch.get_num_threads())


def _strides(x: Tensor, bands: Tensor, history: Tensor | None) -> Any:
    return strides(x.unsqueeze(2), bands, (x if history is None else history).unsqueeze(2))


def rows(filters: Sequence[int]) -> int:
    """Number of rows of all levels' histories together, for filters of the shape (S, K, D)."""
    levels, taps, _ = filters
    return (taps - 1) * (2**levels - 1)


def _as_read(x: Tensor, low: Tensor, high: Tensor, history: Tensor | None, lengths: Tensor | None) -> Any:
    """Checks an operator's tensors and makes them readable by the native functions."""
    batch, _, channels = x.shape
    taps = (*low.shape[:2], channels)
    past = None if history is None else strided(history, (batch, rows(low.shape), channels))
    return strided(x, x.shape), dense(low, taps), dense(high, taps), past, dense_or_none(lengths, (batch,), WHOLE)


@torch.library.custom_op("msssm::decomposition", mutates_args=(), device_types="cpu")
def decomposition(
    x: Tensor, low: Tensor, high: Tensor, history: Tensor | None, lengths: Tensor | None, return_state: bool = True
) -> tuple[Tensor, Tensor]:
    """Computes the bands, and the histories at the end of each row.

    Args:
        x: (B, L, D).
        low: low-pass taps (S, K, D).
        high: high-pass taps (S, K, D).
        history: values before the first, levels concatenated, (B, (K - 1) (2^S - 1), D); None for zeros.
        lengths: (B,) int64; past a row's length the bands are zero.
        return_state: whether the new history is wanted, which may be far longer than the sequence.

    Returns:
        Bands (B, L, S + 2, D), and the new history, or (B, 0, D).
    """
    x, low, high, history, lengths = _as_read(x, low, high, history, lengths)
    bands, last = _decomposition_fake(x, low, high, history, lengths, return_state)
    native().msssm_decomposition_forward(
        _sizes(x, low),
        _strides(x, bands, history),
        pointers(x, low, high, history),
        pointer(lengths),
        pointer(bands),
        pointer(last if return_state else None),
    )
    return bands, last


@decomposition.register_fake
def _decomposition_fake(
    x: Tensor, low: Tensor, high: Tensor, history: Tensor | None, lengths: Tensor | None, return_state: bool = True
) -> tuple[Tensor, Tensor]:
    batch, length, channels = x.shape
    kept = rows(low.shape) if return_state else 0
    return x.new_empty(batch, length, low.shape[0] + 2, channels), x.new_empty(batch, kept, channels)


@torch.library.custom_op("msssm::decomposition_backward", mutates_args=(), device_types="cpu")
def _decomposition_backward(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    history: Tensor | None,
    lengths: Tensor | None,
    grad_bands: Tensor,
    grad_last: Tensor | None,
) -> list[Tensor]:
    """Gradients of x, low, high and the history, where there is none (B, 0, D)."""
    x, low, high, history, lengths = _as_read(x, low, high, history, lengths)
    batch, length, channels = x.shape
    grad_bands = strided(grad_bands, (batch, length, len(low) + 2, channels))
    grad_last = dense_or_none(grad_last, (batch, rows(low.shape), channels))
    grad_x, _, _, grad_history = _backward_fake(x, low, high, history)
    grad_low, grad_high = x.new_empty(2, batch, *low.shape)  # per row of the batch, added up below
    native().msssm_decomposition_backward(
        _sizes(x, low),
        _strides(x, grad_bands, history),
        pointers(x, low, high, history),
        pointer(lengths),
        pointer(grad_bands),
        pointer(grad_last),
        strides(grad_x.unsqueeze(2)),
        pointers(grad_x, grad_low, grad_high, None if history is None else grad_history),
    )
    return [grad_x, grad_low.sum(0), grad_high.sum(0), grad_history]


@_decomposition_backward.register_fake
def _backward_fake(x: Tensor, low: Tensor, high: Tensor, history: Tensor | None, *_: Any) -> list[Tensor]:
    past = (len(x), 0, x.shape[2]) if history is None else history.shape
    return [*(torch.empty_like(each) for each in (x, low, high)), x.new_empty(past)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.return_state = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_bands: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
    x, low, high, history, lengths = inputs = ctx.saved_tensors
    if beyond_first(grad_bands):
        return torch_gradients(torch_form.decomposition, (*inputs, ctx.return_state), (grad_bands, grad_last))
    asked = grad_last.contiguous() if ctx.return_state else None
    *grads, grad_history = _decomposition_backward(x, low, high, history, lengths, inner_contiguous(grad_bands), asked)
    return *grads, None if history is None else grad_history, None, None


torch.library.register_autograd("msssm::decomposition", _backward, setup_context=_setup_context)


@torch.library.custom_op("msssm::weighted_decomposition", mutates_args=(), device_types="cpu")
def weighted_decomposition(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    weights: Tensor,
    history: Tensor | None,
    lengths: Tensor | None,
    return_state: bool = True,
) -> tuple[Tensor, Tensor]:
    """Computes the sum of the bands times weights (S + 2, D), and the histories at the end of each row.

    The other arguments are those of `decomposition`. No band is ever in memory.

    Returns:
        The sum (B, L, D), and the new history, or (B, 0, D).
    """
    x, low, high, history, lengths = _as_read(x, low, high, history, lengths)
    weights = dense(weights, (len(low) + 2, x.shape[2]))
    y, last = _weighted_fake(x, low, high, weights, history, lengths, return_state)
    native().msssm_weighted_decomposition_forward(
        _sizes(x, low),
        _strides(x, y.unsqueeze(2), history),
        pointers(x, low, high, history),
        pointer(lengths),
        pointer(weights),
        pointer(y),
        pointer(last if return_state else None),
    )
    return y, last


@weighted_decomposition.register_fake
def _weighted_fake(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    weights: Tensor,
    history: Tensor | None,
    lengths: Tensor | None,
    return_state: bool = True,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(len(x), rows(low.shape) if return_state else 0, x.shape[2])


@torch.library.custom_op("msssm::weighted_decomposition_backward", mutates_args=(), device_types="cpu")
def _weighted_decomposition_backward(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    weights: Tensor,
    history: Tensor | None,
    lengths: Tensor | None,
    grad_y: Tensor,
    grad_last: Tensor | None,
) -> list[Tensor]:
    """Gradients of x, low, high, the weights and the history, where there is none (B, 0, D)."""
    x, low, high, history, lengths = _as_read(x, low, high, history, lengths)
    weights = dense(weights, (len(low) + 2, x.shape[2]))
    grad_y = strided(grad_y, x.shape)
    grad_last = dense_or_none(grad_last, (len(x), rows(low.shape), x.shape[2]))
    grad_x, *_, grad_history = _weighted_backward_fake(x, low, high, weights, history)
    grad_low, grad_high = x.new_empty(2, len(x), *low.shape)  # per row of the batch, added up below
    grad_weights = x.new_empty(len(x), *weights.shape)
    native().msssm_weighted_decomposition_backward(
        _sizes(x, low),
        _strides(x, grad_y.unsqueeze(2), history),
        pointers(x, low, high, history),
        pointer(lengths),
        pointer(weights),
        pointer(grad_y),
        pointer(grad_last),
        strides(grad_x.unsqueeze(2)),
        pointers(grad_x, grad_low, grad_high, None if history is None else grad_history, grad_weights),
    )
    return [grad_x, grad_low.sum(0), grad_high.sum(0), grad_weights.sum(0), grad_history]


@_weighted_decomposition_backward.register_fake
def _weighted_backward_fake(
    x: Tensor, low: Tensor, high: Tensor, weights: Tensor, history: Tensor | None, *_: Any
) -> list[Tensor]:
    grad_x, grad_low, grad_high, grad_history = _backward_fake(x, low, high, history)
    return [grad_x, grad_low, grad_high, torch.empty_like(weights), grad_history]


def _weighted_backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    if beyond_first(grad_y):
        return torch_gradients(torch_form.weighted_decomposition, (*inputs, ctx.return_state), (grad_y, grad_last))
    asked = grad_last.contiguous() if ctx.return_state else None
    *grads, grad_history = _weighted_decomposition_backward(*inputs, inner_contiguous(grad_y), asked)
    return *grads, None if inputs[4] is None else grad_history, None, None


torch.library.register_autograd("msssm::weighted_decomposition", _weighted_backward, setup_context=_setup_context)
