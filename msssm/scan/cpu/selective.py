"""The native selective scan: `selective.cpp` behind two `torch.library` operators, float32 only.

The operators have fake implementations and a backward, for autograd, `torch.compile` and `torch.export`.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msssm.operands import WHOLE, dense, dense_or_none, inner_contiguous, strided
from msssm.recompute import kept
from msssm.scan.cpu.decomposition import rows
from msssm.scan.cpu.library import integers, native, pointer, pointers, strides
from msssm.transforms import beyond_first, plain_gradients


class Operands(NamedTuple):
    """Tensors of a selective scan, as `msssm.scan.multiscale_scan` describes them."""

    u: Tensor  # (B, L, M, D)
    delta: Tensor  # (B, L, M, D), or (B, L, M, R) with a delta_weight
    A: Tensor  # (M, D, N)
    B: Tensor  # (B, L, M, N)
    C: Tensor  # (B, L, M, N)
    mix: Tensor  # (B, L, M, H)
    D: Tensor | None  # (M, D)
    delta_weight: Tensor | None  # (M, R, D)
    delta_bias: Tensor | None  # (M, D)
    lengths: Tensor | None  # (B,)
    state: Tensor | None  # (B, M, D, N)


class Filters(NamedTuple):
    """Filters of `msssm.decomposition`, for a scan that makes its bands itself."""

    low: Tensor  # (S, K, D)
    high: Tensor  # (S, K, D)
    history: Tensor | None  # (B, (K - 1) (2^S - 1), D)


def _sizes(u: Tensor, mix: Tensor, B: Tensor, delta_weight: Tensor | None, low: Tensor | None, zoh: bool) -> Any:
    batch, length, bands, heads = mix.shape
    rank = 0 if delta_weight is None else delta_weight.shape[1]
    taps = 0 if low is None else low.shape[1]
    return integers(
        batch, length, bands, u.shape[-1], B.shape[-1], heads, rank, int(zoh), taps, torch.get_num_threads()
    )


def _strides(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, mix: Tensor, history: Tensor | None) -> Any:
    past = u if history is None else history
    return strides(*(x.unsqueeze(2) if x.ndim == 3 else x for x in (u, delta, B, C, mix, past)))


def _limits(lowest: float, highest: float) -> Any:
    return (ctypes.c_float * 2)(lowest, highest)


def _as_read(*operands: Any) -> Any:
    """Checks an operator's tensors and makes them readable by the native functions."""
    u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, initial, low, high, history = operands
    batch, length, bands, _ = mix.shape
    channels, N, rank = u.shape[-1], B.shape[-1], delta.shape[-1]
    varying = (batch, length, bands, channels)
    taps = None if low is None else (bands - 2, low.shape[1], channels)
    return (
        strided(u, varying if taps is None else (batch, length, channels)),
        strided(delta, varying if delta_weight is None else (batch, length, bands, rank)),
        dense(A, (bands, N, channels)),
        strided(B, (batch, length, bands, N)),
        strided(C, (batch, length, bands, N)),
        strided(mix, mix.shape),
        dense_or_none(D, (bands, channels)),
        dense_or_none(delta_weight, (bands, rank, channels)),
        dense_or_none(delta_bias, (bands, channels)),
        dense_or_none(lengths, (batch,), WHOLE),
        dense_or_none(initial, (batch, bands, N, channels)),
        dense_or_none(low, taps or ()),
        dense_or_none(high, taps or ()),
        None if history is None or taps is None else strided(history, (batch, rows(taps), channels)),
    )


@torch.library.custom_op("msssm::selective", mutates_args=(), device_types="cpu")
@kept
def _selective(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None,
    delta_weight: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    initial: Tensor | None,
    zoh: bool,
    lowest: float,
    highest: float,
    keep: bool,
    low: Tensor | None = None,
    high: Tensor | None = None,
    history: Tensor | None = None,
    return_state: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs `multiscale_scan` with A (M, N, D) and states (B, M, N, D).

    With filters u is x (B, L, D), of which the bands are made. Returns y (B, L, D), the last state, with `keep` the
    states before each segment, (B, segments, M, N, D), and with `return_state` the filters' new history.
    """
    operands = _as_read(u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, initial, low, high, history)
    u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, initial, low, high, history = operands
    y, last, checkpoints, past = _selective_fake(
        *operands[:11], zoh, lowest, highest, keep, low, high, history, return_state
    )
    native().msssm_selective_forward(
        _sizes(u, mix, B, delta_weight, low, zoh),
        _strides(u, delta, B, C, mix, history),
        pointers(u, delta, B, C, mix, A, D, delta_weight, delta_bias, initial, low, high, history),
        pointer(lengths),
        _limits(lowest, highest),
        pointer(y),
        pointer(last),
        pointer(past if return_state else None),
        pointer(checkpoints if keep else None),
    )
    return y, last, checkpoints, past


@_selective.register_fake
def _selective_fake(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None,
    delta_weight: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    initial: Tensor | None,
    zoh: bool,
    lowest: float,
    highest: float,
    keep: bool,
    low: Tensor | None = None,
    high: Tensor | None = None,
    history: Tensor | None = None,
    return_state: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, bands, _ = mix.shape
    channels, N = u.shape[-1], B.shape[-1]
    segments = -(-length // int(native().msssm_segment(bands, N))) if keep else 0
    return (
        u.new_empty(batch, length, channels),
        u.new_empty(batch, bands, N, channels),
        u.new_empty(batch, segments, bands, N, channels),
        u.new_empty(batch, rows(low.shape) if low is not None and return_state else 0, channels),
    )


@torch.library.custom_op("msssm::selective_backward", mutates_args=(), device_types="cpu")
def _selective_backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None,
    delta_weight: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    initial: Tensor | None,
    low: Tensor | None,
    high: Tensor | None,
    history: Tensor | None,
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_last: Tensor,
    grad_past: Tensor | None,
    zoh: bool,
    lowest: float,
    highest: float,
    need_mix: bool,
) -> list[Tensor]:
    """Gradients of the tensors but the lengths; empty those of an unneeded mix, of absent filters and history."""
    u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, initial, low, high, history = _as_read(
        u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, initial, low, high, history
    )
    batch, length, bands, _ = mix.shape
    channels = u.shape[-1]
    grad_y, grad_last = strided(grad_y, (batch, length, channels)), dense(grad_last, (batch, *A.shape))
    checkpoints = dense(checkpoints, (batch, *checkpoints.shape[1:2], *A.shape))
    grad_past = dense_or_none(grad_past, (batch, 0 if low is None else rows(low.shape), channels))
    groups = int(native().msssm_groups(batch, channels))
    grad_u, grad_initial = torch.empty_like(u), torch.empty_like(grad_last)
    # Partial sums, added up below in a fixed order: per row of the batch, or per group of channels.
    grad_A = u.new_empty(batch, *A.shape)
    grad_D, grad_bias = u.new_empty(2, batch, bands, channels)
    grad_B, grad_C = (u.new_empty(groups, *x.shape) for x in (B, C))
    grad_mix = u.new_empty(groups, *mix.shape) if need_mix else None
    grad_low, grad_high = u.new_empty(2, batch, *(() if low is None else low.shape))
    grad_history = None if history is None else u.new_empty(history.shape)
    if delta_weight is None:
        grad_delta, grad_low_rank, grad_weight = torch.empty_like(delta), None, u.new_empty(batch, 0)
    else:
        grad_low_rank = u.new_empty(groups, *delta.shape)
        grad_delta, grad_weight = grad_low_rank[0], u.new_empty(batch, *delta_weight.shape)
    native().msssm_selective_backward(
        _sizes(u, mix, B, delta_weight, low, zoh),
        _strides(u, delta, B, C, mix, history),
        pointers(u, delta, B, C, mix, A, D, delta_weight, delta_bias, initial, low, high, history),
        pointer(lengths),
        _limits(lowest, highest),
        pointer(checkpoints),
        pointer(grad_y),
        pointer(grad_last),
        pointer(grad_past),
        strides(grad_y.unsqueeze(2), grad_u.unsqueeze(2) if grad_u.ndim == 3 else grad_u, grad_delta),
        pointers(
            grad_u, grad_delta, grad_low_rank, grad_A, grad_B, grad_C, grad_mix, grad_D, grad_weight, grad_bias,
            grad_initial, grad_low, grad_high, grad_history,
        ),
    )  # fmt: skip

    def over_groups(x: Tensor | None) -> Tensor:
        return u.new_empty(0) if x is None else x[0] if groups == 1 else x.sum(0)

    return [
        grad_u,
        grad_delta if grad_low_rank is None else over_groups(grad_low_rank),
        grad_A.sum(0),
        *map(over_groups, (grad_B, grad_C, grad_mix)),
        *(x.sum(0) for x in (grad_D, grad_weight, grad_bias)),
        grad_initial,
        *(x.sum(0) if low is not None else x.new_empty(0) for x in (grad_low, grad_high)),
        u.new_empty(0) if grad_history is None else grad_history,
    ]


@_selective_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    u, delta, A, B, C, mix, _, delta_weight, _, _, _, low, _, history, _, _, grad_last, *_, need_mix = arguments
    grad_delta = torch.empty_like(delta) if delta_weight is None else u.new_empty(delta.shape)
    grad_mix, grad_weight = (
        u.new_empty(0 if x is None else x.shape) for x in (mix if need_mix else None, delta_weight)
    )
    grad_D, grad_bias = (u.new_empty(mix.shape[2], u.shape[-1]) for _ in range(2))
    others = grad_mix, grad_D, grad_weight, grad_bias, torch.empty_like(grad_last)
    grad_taps = (u.new_empty(0 if low is None else low.shape) for _ in range(2))
    grads = (u.new_empty(x.shape) for x in (A, B, C))
    grad_history = u.new_empty(0 if history is None else history.shape)
    return [torch.empty_like(u), grad_delta, *grads, *others, *grad_taps, grad_history]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.zoh, ctx.lowest, ctx.highest, _, low, high, history, ctx.return_state = inputs
    ctx.save_for_backward(*tensors, low, high, history, output[2])


def _backward(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor, grad_past: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, checkpoints = ctx.saved_tensors
    options = ctx.zoh, ctx.lowest, ctx.highest
    if beyond_first(grad_y):
        arguments = *inputs[:11], *options, False, *inputs[11:], ctx.return_state
        if inputs[11] is None:
            return plain_gradients("msssm::selective", arguments, (grad_y, grad_last))
        return plain_gradients("msssm::filtered_selective", arguments, (grad_y, grad_last, grad_past))
    needs = ctx.needs_input_grad
    grads = _selective_backward(
        *inputs,
        checkpoints,
        inner_contiguous(grad_y),
        grad_last.contiguous(),
        grad_past.contiguous() if ctx.return_state else None,
        *options,
        needs[5],
    )
    *others, initial, low, high, history = grads
    # The lengths and options have none.
    every = (*others, None, initial, None, None, None, None, low, high, history, None)
    # torch leaves out defaults at the end.
    return tuple(grad if need else None for grad, need in zip(every, needs, strict=False))


torch.library.register_autograd("msssm::selective", _backward, setup_context=_setup_context)


def multiscale_scan(
    operands: Operands,
    discretization: str,
    delta_limits: tuple[float, float],
    filters: Filters | None = None,
    return_state: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the fused recurrence, skip and mix of `msssm.scan.multiscale_scan` in float32.

    With filters, u is the layer's input (B, L, D), of which the scan makes the bands. Returns y (B, L, D), the last
    state (B, M, D, N), and with `return_state` the filters' new history.
    """
    u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, state = operands
    u, delta, B, C, mix = (inner_contiguous(x) for x in (u, delta, B, C, mix))
    A = A.transpose(1, 2).contiguous()
    D, delta_weight, delta_bias = (None if x is None else x.contiguous() for x in (D, delta_weight, delta_bias))
    initial = None if state is None else state.transpose(2, 3).contiguous()
    tensors = u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, initial
    taps = (None, None, None) if filters is None else filters
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*tensors, *taps))
    zoh = discretization == "zoh"
    y, last, _, past = _selective(*tensors, zoh, *delta_limits, needs_grad, *taps, return_state)
    return y, last.transpose(2, 3), past
