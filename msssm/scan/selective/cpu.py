"""The native selective scan: `selective.cpp` behind two `torch.library` operators, float32 only.

The operators have fake implementations and a backward, for autograd, `torch.compile` and `torch.export`. They take
`Operands`, turned as the kernels read them: A (M, N, D), states (B, M, N, D).
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from msssm.recompute import kept
from msssm.scan.csrc.library import integers, native, pointer, pointers, strides
from msssm.scan.decomposition.cpu import rows
from msssm.scan.decomposition.torch import decomposition
from msssm.scan.delta import MAX_DELTA, MIN_DELTA
from msssm.scan.operands import WHOLE, dense, dense_or_none, inner_contiguous, schema, strided
from msssm.scan.selective.operands import Operands
from msssm.scan.selective.torch import sequential_scan
from msssm.transforms import beyond_first, torch_gradients

_OPERANDS = schema(Operands)
_COUNT = len(Operands._fields)
_LIMITS = (ctypes.c_float * 2)(MIN_DELTA, MAX_DELTA)


def _sizes(x: Operands, zoh: bool) -> Any:
    batch, length, bands, heads = x.mix.shape
    rank = 0 if x.delta_weight is None else x.delta_weight.shape[1]
    taps = 0 if x.low is None else x.low.shape[1]
    return integers(
        batch, length, bands, x.u.shape[-1], x.B.shape[-1], heads, rank, int(zoh), taps, torch.get_num_threads()
    )


def _strides(x: Operands) -> Any:
    past = x.u if x.history is None else x.history
    return strides(*(each.unsqueeze(2) if each.ndim == 3 else each for each in (x.u, x.delta, x.B, x.C, x.mix, past)))


def _pointers(x: Operands) -> Any:
    return pointers(
        x.u, x.delta, x.B, x.C, x.mix, x.A, x.D, x.delta_weight, x.delta_bias, x.state, x.low, x.high, x.history
    )


def _as_read(x: Operands) -> Operands:
    """Checks the tensors and makes them readable by the native functions."""
    batch, length, bands, heads = x.mix.shape
    channels, N, rank = x.u.shape[-1], x.B.shape[-1], x.delta.shape[-1]
    varying = (batch, length, bands)
    taps = None if x.low is None else (bands - 2, x.low.shape[1], channels)
    return Operands(
        strided(x.u, (*varying, channels) if taps is None else (batch, length, channels)),
        strided(x.delta, (*varying, channels if x.delta_weight is None else rank)),
        dense(x.A, (bands, N, channels)),
        strided(x.B, (*varying, N)),
        strided(x.C, (*varying, N)),
        strided(x.mix, (*varying, heads)),
        dense_or_none(x.D, (bands, channels)),
        dense_or_none(x.delta_weight, (bands, rank, channels)),
        dense_or_none(x.delta_bias, (bands, channels)),
        dense_or_none(x.lengths, (batch,), WHOLE),
        dense_or_none(x.state, (batch, bands, N, channels)),
        dense_or_none(x.low, taps or ()),
        dense_or_none(x.high, taps or ()),
        None if x.history is None or taps is None else strided(x.history, (batch, rows(taps), channels)),
    )


@torch.library.custom_op(
    "msssm::selective",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_OPERANDS}, bool zoh, bool keep, bool return_state) -> (Tensor, Tensor, Tensor, Tensor)",
)
@kept
def _selective(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs the scan.

    Returns y (B, L, D), the last state, with `keep` the states before each chunk, (B, chunks, M, N, D), and with
    filters and `return_state` their new history.
    """
    *tensors, zoh, keep, return_state = arguments
    operands = _as_read(Operands(*tensors))
    y, last, checkpoints, past = _selective_fake(*operands, zoh, keep, return_state)
    native().msssm_selective_forward(
        _sizes(operands, zoh),
        _strides(operands),
        _pointers(operands),
        pointer(operands.lengths),
        _LIMITS,
        pointer(y),
        pointer(last),
        pointer(past if return_state else None),
        pointer(checkpoints if keep else None),
    )
    return y, last, checkpoints, past


@_selective.register_fake
def _selective_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *tensors, _, keep, return_state = arguments
    x = Operands(*tensors)
    batch, length, bands, _ = x.mix.shape
    channels, N = x.u.shape[-1], x.B.shape[-1]
    chunks = -(-length // int(native().msssm_chunk(bands, N))) if keep else 0
    return (
        x.u.new_empty(batch, length, channels),
        x.u.new_empty(batch, bands, N, channels),
        x.u.new_empty(batch, chunks, bands, N, channels),
        x.u.new_empty(batch, rows(x.low.shape) if x.low is not None and return_state else 0, channels),
    )


@torch.library.custom_op(
    "msssm::selective_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_OPERANDS}, Tensor checkpoints, Tensor grad_y, Tensor grad_last, Tensor? grad_past, bool zoh, "
    "bool need_mix) -> Tensor[]",
)
def _selective_backward(*arguments: Any) -> list[Tensor]:
    """Gradients of the operands but the lengths; empty those of an unneeded mix, of absent filters and history."""
    *tensors, checkpoints, grad_y, grad_last, grad_past, zoh, need_mix = arguments
    x = _as_read(Operands(*tensors))
    u, delta, A, low = x.u, x.delta, x.A, x.low
    batch, length, bands, _ = x.mix.shape
    channels = u.shape[-1]
    grad_y, grad_last = strided(grad_y, (batch, length, channels)), dense(grad_last, (batch, *A.shape))
    checkpoints = dense(checkpoints, (batch, *checkpoints.shape[1:2], *A.shape))
    grad_past = dense_or_none(grad_past, (batch, 0 if low is None else rows(low.shape), channels))
    groups = int(native().msssm_groups(batch, channels))
    grad_u, grad_initial = torch.empty_like(u), torch.empty_like(grad_last)
    # Partial sums, added up below in a fixed order: per row of the batch, or per group of channels.
    grad_A = u.new_empty(batch, *A.shape)
    grad_D, grad_bias = u.new_empty(2, batch, bands, channels)
    grad_B, grad_C = (u.new_empty(groups, *each.shape) for each in (x.B, x.C))
    grad_mix = u.new_empty(groups, *x.mix.shape) if need_mix else None
    grad_low, grad_high = u.new_empty(2, batch, *(() if low is None else low.shape))
    grad_history = None if x.history is None else u.new_empty(x.history.shape)
    if x.delta_weight is None:
        grad_delta, grad_low_rank, grad_weight = torch.empty_like(delta), None, u.new_empty(batch, 0)
    else:
        grad_low_rank = u.new_empty(groups, *delta.shape)
        grad_delta, grad_weight = grad_low_rank[0], u.new_empty(batch, *x.delta_weight.shape)
    native().msssm_selective_backward(
        _sizes(x, zoh),
        _strides(x),
        _pointers(x),
        pointer(x.lengths),
        _LIMITS,
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

    def over_groups(parts: Tensor | None) -> Tensor:
        return u.new_empty(0) if parts is None else parts[0] if groups == 1 else parts.sum(0)

    return [
        grad_u,
        grad_delta if grad_low_rank is None else over_groups(grad_low_rank),
        grad_A.sum(0),
        *map(over_groups, (grad_B, grad_C, grad_mix)),
        *(parts.sum(0) for parts in (grad_D, grad_weight, grad_bias)),
        grad_initial,
        *(parts.sum(0) if low is not None else parts.new_empty(0) for parts in (grad_low, grad_high)),
        u.new_empty(0) if grad_history is None else grad_history,
    ]


@_selective_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    x, need_mix = Operands(*arguments[:_COUNT]), arguments[-1]
    per_band = (x.mix.shape[2], x.u.shape[-1])

    def like(each: Tensor | None) -> Tensor:
        return x.u.new_empty(0 if each is None else each.shape)

    grad_delta = torch.empty_like(x.delta) if x.delta_weight is None else like(x.delta)
    grad_D, grad_bias = x.u.new_empty(per_band), x.u.new_empty(per_band)
    grad_state = x.u.new_empty(len(x.mix), *x.A.shape)
    grads = torch.empty_like(x.u), grad_delta, like(x.A), like(x.B), like(x.C), like(x.mix if need_mix else None)
    return [*grads, grad_D, like(x.delta_weight), grad_bias, grad_state, *map(like, (x.low, x.high, x.history))]


def _torch_form(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The same map in torch operators: y, the last state and the new history."""
    *tensors, zoh, _, return_state = arguments
    x = Operands(*tensors).turned()
    past = x.u.new_empty(0)
    if x.low is not None and x.high is not None:
        bands, past = decomposition(x.u, x.low, x.high, x.history, x.lengths, return_state)
        x = x._replace(u=bands, low=None, high=None, history=None)
    y, last = sequential_scan(x, "zoh" if zoh else "euler")
    return y, last.transpose(2, 3), past


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.zoh, _, ctx.return_state = inputs
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor, grad_past: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, checkpoints = ctx.saved_tensors
    filtered = inputs[-2] is not None
    if beyond_first(grad_y):
        grads = (grad_y, grad_last, grad_past) if filtered else (grad_y, grad_last)
        return torch_gradients(_torch_form, (*inputs, ctx.zoh, False, ctx.return_state), grads)
    needs = ctx.needs_input_grad
    found = _selective_backward(
        *inputs,
        checkpoints,
        inner_contiguous(grad_y),
        grad_last.contiguous(),
        grad_past.contiguous() if filtered and ctx.return_state else None,
        ctx.zoh,
        needs[Operands._fields.index("mix")],
    )
    lengths = Operands._fields.index("lengths")
    every = (*found[:lengths], None, *found[lengths:], None, None, None)  # the lengths and options have none
    return tuple(grad if need else None for grad, need in zip(every, needs, strict=True))


torch.library.register_autograd("msssm::selective", _backward, setup_context=_setup_context)


def scan(operands: Operands, discretization: str, return_state: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the fused recurrence, skip and mix of `msssm.scan.multiscale_scan` in float32.

    With filters, u is the layer's input (B, L, D), of which the scan makes the bands. Returns y (B, L, D), the last
    state (B, M, D, N), and with filters and `return_state` their new history.
    """
    x = operands.turned()
    tensors = (
        *(inner_contiguous(each) for each in (x.u, x.delta)),
        x.A.contiguous(),
        *(inner_contiguous(each) for each in (x.B, x.C, x.mix)),
        *(None if each is None else each.contiguous() for each in x[6:]),
    )
    keep = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors)
    y, last, _, past = _selective(*tensors, discretization == "zoh", keep, return_state)
    return y, last.transpose(2, 3), past
