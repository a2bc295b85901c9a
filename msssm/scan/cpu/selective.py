"""The native selective scan: `selective.cpp` behind two `torch.library` operators, float32 only.

The operators have fake implementations and a backward, for autograd, `torch.compile` and `torch.export`.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msssm.operands import WHOLE, dense, dense_or_none, inner_contiguous, strided
from msssm.recompute import kept
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


def _sizes(u: Tensor, mix: Tensor, B: Tensor, delta_weight: Tensor | None, zoh: bool) -> Any:
    rank = 0 if delta_weight is None else delta_weight.shape[1]
    return integers(*u.shape, B.shape[-1], mix.shape[-1], rank, int(zoh), torch.get_num_threads())


def _limits(lowest: float, highest: float) -> Any:
    return (ctypes.c_float * 2)(lowest, highest)


def _as_read(*operands: Any) -> Any:
    """Checks an operator's tensors and makes them readable by the native functions."""
    u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, initial = operands
    batch, length, bands, channels = u.shape
    N, heads, rank = B.shape[-1], mix.shape[-1], delta.shape[-1]
    return (
        strided(u, u.shape),
        strided(delta, u.shape if delta_weight is None else (batch, length, bands, rank)),
        dense(A, (bands, N, channels)),
        strided(B, (batch, length, bands, N)),
        strided(C, (batch, length, bands, N)),
        strided(mix, (batch, length, bands, heads)),
        dense_or_none(D, (bands, channels)),
        dense_or_none(delta_weight, (bands, rank, channels)),
        dense_or_none(delta_bias, (bands, channels)),
        dense_or_none(lengths, (batch,), WHOLE),
        dense_or_none(initial, (batch, bands, N, channels)),
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs `multiscale_scan` with A (M, N, D) and states (B, M, N, D).

    Returns y (B, L, D), the last state, and with `keep` the states before each segment, (B, segments, M, N, D).
    """
    u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, initial = _as_read(
        u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, initial
    )
    y, last, checkpoints = _selective_fake(u, delta, A, B, keep)
    native().msssm_selective_forward(
        _sizes(u, mix, B, delta_weight, zoh),
        strides(u, delta, B, C, mix),
        pointers(u, delta, B, C, mix, A, D, delta_weight, delta_bias, initial),
        pointer(lengths),
        _limits(lowest, highest),
        pointer(y),
        pointer(last),
        pointer(checkpoints if keep else None),
    )
    return y, last, checkpoints


@_selective.register_fake
def _selective_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    u, _, _, B, *_, keep = arguments
    batch, length, bands, channels = u.shape
    state = (bands, B.shape[-1], channels)
    segments = -(-length // int(native().msssm_segment(bands, B.shape[-1]))) if keep else 0
    return u.new_empty(batch, length, channels), u.new_empty(batch, *state), u.new_empty(batch, segments, *state)


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
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_last: Tensor,
    zoh: bool,
    lowest: float,
    highest: float,
    need_mix: bool,
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, mix (empty unless needed), D, delta_weight, delta_bias and the initial state."""
    u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, initial = _as_read(
        u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, initial
    )
    batch, length, bands, channels = u.shape
    grad_y, grad_last = strided(grad_y, (batch, length, channels)), dense(grad_last, (batch, *A.shape))
    checkpoints = dense(checkpoints, (batch, *checkpoints.shape[1:2], *A.shape))
    groups = int(native().msssm_groups(batch, channels))
    grad_u, grad_initial = torch.empty_like(u), torch.empty_like(grad_last)
    # Partial sums, added up below in a fixed order: per row of the batch, or per group of channels.
    grad_A = u.new_empty(batch, *A.shape)
    grad_D, grad_bias = u.new_empty(2, batch, bands, channels)
    grad_B, grad_C = (u.new_empty(groups, *x.shape) for x in (B, C))
    grad_mix = u.new_empty(groups, *mix.shape) if need_mix else None
    if delta_weight is None:
        grad_delta, grad_low_rank, grad_weight = torch.empty_like(delta), None, u.new_empty(batch, 0)
    else:
        grad_low_rank = u.new_empty(groups, *delta.shape)
        grad_delta, grad_weight = grad_low_rank[0], u.new_empty(batch, *delta_weight.shape)
    native().msssm_selective_backward(
        _sizes(u, mix, B, delta_weight, zoh),
        strides(u, delta, B, C, mix),
        pointers(u, delta, B, C, mix, A, D, delta_weight, delta_bias, initial),
        pointer(lengths),
        _limits(lowest, highest),
        pointer(checkpoints),
        pointer(grad_y),
        pointer(grad_last),
        strides(grad_y.unsqueeze(2), grad_u, grad_delta),
        pointers(
            grad_u, grad_delta, grad_low_rank, grad_A, grad_B, grad_C, grad_mix, grad_D, grad_weight, grad_bias,
            grad_initial,
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
    ]


@_selective_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    u, delta, A, B, C, mix, _, delta_weight, *_, grad_last, _, _, _, need_mix = arguments
    grad_delta = torch.empty_like(delta) if delta_weight is None else u.new_empty(delta.shape)
    grad_mix, grad_weight = (
        u.new_empty(0 if x is None else x.shape) for x in (mix if need_mix else None, delta_weight)
    )
    grad_D, grad_bias = (u.new_empty(u.shape[2:]) for _ in range(2))
    others = grad_mix, grad_D, grad_weight, grad_bias, torch.empty_like(grad_last)
    return [torch.empty_like(u), grad_delta, *(u.new_empty(x.shape) for x in (A, B, C)), *others]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.zoh, ctx.lowest, ctx.highest, _ = inputs
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, checkpoints = ctx.saved_tensors
    if beyond_first(grad_y):
        options = ctx.zoh, ctx.lowest, ctx.highest, False
        return plain_gradients("msssm::selective", (*inputs, *options), (grad_y, grad_last))
    grad_y = inner_contiguous(grad_y)
    needed = [needs for i, needs in enumerate(ctx.needs_input_grad[:11]) if i != 9]  # all but the lengths
    grads = _selective_backward(
        *inputs, checkpoints, grad_y, grad_last.contiguous(), ctx.zoh, ctx.lowest, ctx.highest, ctx.needs_input_grad[5]
    )
    *grads, grad_initial = (g if needed else None for g, needed in zip(grads, needed, strict=True))
    return *grads, None, grad_initial, None, None, None, None


torch.library.register_autograd("msssm::selective", _backward, setup_context=_setup_context)


def multiscale_scan(
    operands: Operands, discretization: str, delta_limits: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Runs the fused recurrence, skip and mix of `msssm.scan.multiscale_scan` in float32.

    Returns y (B, L, D) and the last state (B, M, D, N).
    """
    u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, state = operands
    u, delta, B, C, mix = (inner_contiguous(x) for x in (u, delta, B, C, mix))
    A = A.transpose(1, 2).contiguous()
    D, delta_weight, delta_bias = (None if x is None else x.contiguous() for x in (D, delta_weight, delta_bias))
    initial = None if state is None else state.transpose(2, 3).contiguous()
    tensors = u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, initial
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    y, last, _ = _selective(*tensors, discretization == "zoh", *delta_limits, needs_grad)
    return y, last.transpose(2, 3)
