"""The native selective scan: `selective.cpp` behind two `torch.library` operators, float32 only.

The operators have fake implementations and a backward, so that autograd, `torch.compile` and `torch.export` go through.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from msssm.native.library import integers, native, pointer, pointers, strides
from msssm.operands import WHOLE, dense, dense_or_none, inner_contiguous, strided
from msssm.recompute import kept
from msssm.transforms import beyond_first, plain_gradients


def _sizes(u: Tensor, mix: Tensor, B: Tensor, zoh: bool) -> Any:
    batch, length, bands, channels = u.shape
    return integers(batch, length, bands, channels, B.shape[-1], mix.shape[-1], int(zoh), torch.get_num_threads())


def _limits(lowest: float, highest: float) -> Any:
    return (ctypes.c_float * 2)(lowest, highest)


def _as_read(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    initial: Tensor | None,
) -> Any:
    """The tensors of an operator as the native functions read them."""
    batch, length, bands, channels = u.shape
    N, heads = B.shape[-1], mix.shape[-1]
    return (
        strided(u, u.shape),
        strided(delta, u.shape),
        dense(A, (bands, N, channels)),
        strided(B, (batch, length, bands, N)),
        strided(C, (batch, length, bands, N)),
        strided(mix, (batch, length, bands, heads)),
        dense_or_none(D, (bands, channels)),
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
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    initial: Tensor | None,
    zoh: bool,
    lowest: float,
    highest: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `multiscale_scan`, but A (M, N, D) and states (B, M, N, D), contiguous; mix (B, L, M, H).

    Returns y (B, L, D), the last state, and with `keep` the states before each segment, (B, segments, M, N, D).
    """
    u, delta, A, B, C, mix, D, delta_bias, lengths, initial = _as_read(
        u, delta, A, B, C, mix, D, delta_bias, lengths, initial
    )
    y, last, checkpoints = _selective_fake(
        u, delta, A, B, C, mix, D, delta_bias, lengths, initial, zoh, lowest, highest, keep
    )
    native().msssm_selective_forward(
        _sizes(u, mix, B, zoh),
        strides(u, delta, B, C, mix),
        pointers(u, delta, B, C, mix, A, D, delta_bias, initial),
        pointer(lengths),
        _limits(lowest, highest),
        pointer(y),
        pointer(last),
        pointer(checkpoints if keep else None),
    )
    return y, last, checkpoints


@_selective.register_fake
def _selective_fake(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    initial: Tensor | None,
    zoh: bool,
    lowest: float,
    highest: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, bands, channels = u.shape
    state = (bands, B.shape[-1], channels)
    segments = -(-length // int(native().msssm_segment(bands))) if keep else 0
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
    """Gradients of u, delta, A, B, C, mix (empty unless needed), D, delta_bias and the initial state."""
    u, delta, A, B, C, mix, D, delta_bias, lengths, initial = _as_read(
        u, delta, A, B, C, mix, D, delta_bias, lengths, initial
    )
    batch, length, bands, channels = u.shape
    grad_y, grad_last = strided(grad_y, (batch, length, channels)), dense(grad_last, (batch, *A.shape))
    checkpoints = dense(checkpoints, (batch, *checkpoints.shape[1:2], *A.shape))
    groups = int(native().msssm_groups(batch, channels))
    grad_u, grad_delta, grad_initial = torch.empty_like(u), torch.empty_like(delta), torch.empty_like(grad_last)
    # Partial sums, added up below in a fixed order: per row of the batch, or per group of channels.
    grad_A = u.new_empty(batch, *A.shape)
    grad_D, grad_bias = u.new_empty(2, batch, bands, channels)
    grad_B, grad_C = (u.new_zeros(groups, *x.shape) for x in (B, C))
    grad_mix = u.new_zeros(groups, *mix.shape) if need_mix else None
    native().msssm_selective_backward(
        _sizes(u, mix, B, zoh),
        strides(u, delta, B, C, mix),
        pointers(u, delta, B, C, mix, A, D, delta_bias, initial),
        pointer(lengths),
        _limits(lowest, highest),
        pointer(checkpoints),
        pointer(grad_y),
        pointer(grad_last),
        strides(grad_y.unsqueeze(2), grad_u, grad_delta),
        pointers(grad_u, grad_delta, grad_A, grad_B, grad_C, grad_mix, grad_D, grad_bias, grad_initial),
    )
    over_groups = [x[0] if groups == 1 else x.sum(0) for x in (grad_B, grad_C)]
    over_groups.append(u.new_empty(0) if grad_mix is None else grad_mix.sum(0))
    return [grad_u, grad_delta, grad_A.sum(0), *over_groups, grad_D.sum(0), grad_bias.sum(0), grad_initial]


@_selective_backward.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None,
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
    grad_B, grad_C = u.new_empty(B.shape), u.new_empty(C.shape)
    grad_mix = u.new_empty(mix.shape if need_mix else 0)
    per_band = [u.new_empty(u.shape[2:]) for _ in range(2)]
    own = [torch.empty_like(x) for x in (u, delta, A)]
    return [*own, grad_B, grad_C, grad_mix, *per_band, torch.empty_like(grad_last)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.zoh, ctx.lowest, ctx.highest, _ = inputs
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, checkpoints = ctx.saved_tensors
    if beyond_first(grad_y):
        options = ctx.zoh, ctx.lowest, ctx.highest, False
        return plain_gradients("msssm::selective", (*inputs, *options), (grad_y, grad_last))
    grad_y = inner_contiguous(grad_y)
    *grads, grad_D, grad_bias, grad_initial = _selective_backward(
        *inputs, checkpoints, grad_y, grad_last.contiguous(), ctx.zoh, ctx.lowest, ctx.highest, ctx.needs_input_grad[5]
    )
    if not ctx.needs_input_grad[5]:
        grads[5] = None
    _, _, _, _, _, _, D, bias, _, initial = inputs
    optional = [
        None if x is None else grad
        for x, grad in ((D, grad_D), (bias, grad_bias), (None, None), (initial, grad_initial))
    ]
    return *grads, *optional, None, None, None, None


torch.library.register_autograd("msssm::selective", _backward, setup_context=_setup_context)


def multiscale_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    state: Tensor | None,
    discretization: str,
    delta_limits: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """The fused recurrence, skip and mix of `msssm.scan.multiscale_scan`; float32 tensors, mix (B, L, M, H).

    Returns y (B, L, D) and the last state (B, M, D, N).
    """
    varying = [inner_contiguous(x) for x in (u, delta, B, C, mix)]
    rates = A.transpose(1, 2).contiguous()
    skip, bias = (None if x is None else x.contiguous() for x in (D, delta_bias))
    initial = None if state is None else state.transpose(2, 3).contiguous()
    tensors = (*varying, rates, skip, bias, initial)
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    u, delta, B, C, mix = varying
    y, last, _ = _selective(
        u, delta, rates, B, C, mix, skip, bias, lengths, initial, discretization == "zoh", *delta_limits, needs_grad
    )
    return y, last.transpose(2, 3)
