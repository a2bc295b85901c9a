"""The native time-invariant recurrence: `lti.cpp` behind two `torch.library` operators, float32 only.

The operators take `Operands`: real and imaginary parts as tensors of their own, states before channels.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from msssm.recompute import kept
from msssm.scan.csrc.library import integers, native, planes, pointer, pointers, strides
from msssm.scan.lti.torch import sequential_scan
from msssm.scan.operands import WHOLE, dense, dense_or_none, inner_contiguous, schema, strided
from msssm.transforms import beyond_first, torch_gradients


class Operands(NamedTuple):
    """Tensors of the recurrence; imaginary parts are None in a real one."""

    u: Tensor  # (B, L, M, D)
    mix: Tensor  # (B, L, M, H)
    decay: Tensor  # (M, N, D)
    decay_im: Tensor | None
    weight: Tensor  # (M, N, D)
    weight_im: Tensor | None
    state: Tensor | None = None  # (B, M, N, D)
    state_im: Tensor | None = None
    D: Tensor | None = None  # (M, D)
    lengths: Tensor | None = None  # (B,)


_OPERANDS = schema(Operands)
_COUNT = len(Operands._fields)


def _sizes(x: Operands) -> Any:
    batch, length, bands, channels = x.u.shape
    states, heads = x.decay.shape[1], x.mix.shape[-1]
    return integers(batch, length, bands, channels, states, heads, int(x.decay_im is not None), torch.get_num_threads())


def _as_read(x: Operands) -> Operands:
    """Checks the tensors and makes them readable by the native functions."""
    batch, length, bands, channels = x.u.shape
    parameter = (bands, x.decay.shape[1], channels)
    return Operands(
        strided(x.u, x.u.shape),
        strided(x.mix, (batch, length, bands, x.mix.shape[-1])),
        dense(x.decay, parameter),
        dense_or_none(x.decay_im, parameter),
        dense(x.weight, parameter),
        dense_or_none(x.weight_im, parameter),
        dense_or_none(x.state, (batch, *parameter)),
        dense_or_none(x.state_im, (batch, *parameter)),
        dense_or_none(x.D, (bands, channels)),
        dense_or_none(x.lengths, (batch,), WHOLE),
    )


@torch.library.custom_op(
    "msssm::lti", mutates_args=(), device_types="cpu", schema=f"({_OPERANDS}) -> (Tensor, Tensor, Tensor)"
)
@kept
def _lti(*tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Runs `scan`: y (B, L, D), and both parts of the last state, the imaginary one empty in a real recurrence."""
    x = _as_read(Operands(*tensors))
    y, last, last_im = _lti_fake(*x)
    native().msssm_lti_forward(
        _sizes(x),
        strides(x.u, x.mix),
        pointers(*x[:9]),
        pointer(x.lengths),
        pointer(y),
        pointers(last, last_im),
    )
    return y, last, last_im


@_lti.register_fake
def _lti_fake(*tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
    x = Operands(*tensors)
    batch, length, _, channels = x.u.shape
    state = (batch, *x.decay.shape)
    imaginary = (0,) if x.decay_im is None else state
    return x.u.new_empty(batch, length, channels), x.u.new_empty(state), x.u.new_empty(imaginary)


@torch.library.custom_op(
    "msssm::lti_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_OPERANDS}, Tensor grad_y, Tensor grad_last, Tensor grad_last_im, bool need_mix) -> Tensor[]",
)
def _lti_backward(*arguments: Any) -> list[Tensor]:
    """Gradients of the operands but the lengths, empty those of an unneeded mix and of absent imaginary parts."""
    *tensors, grad_y, grad_last, grad_last_im, need_mix = arguments
    x = _as_read(Operands(*tensors))
    batch, length, bands, channels = x.u.shape
    grad_y, grad_last = strided(grad_y, (batch, length, channels)), dense(grad_last, (batch, *x.decay.shape))
    grad_last_im = dense(grad_last_im, (0,) if x.decay_im is None else grad_last.shape)
    groups = int(native().msssm_groups(batch, channels))
    grad_u = torch.empty_like(x.u)
    grad_mix = x.u.new_zeros(groups, *x.mix.shape) if need_mix else None
    # Partial sums per row of the batch, added up below.
    parts = [x.u.new_empty(0 if i % 2 and x.decay_im is None else (batch, *x.decay.shape)) for i in range(6)]
    grad_D = x.u.new_empty(batch, bands, channels)
    native().msssm_lti_backward(
        _sizes(x),
        strides(x.u, x.mix),
        pointers(*x[:9]),
        pointer(x.lengths),
        pointer(grad_y),
        pointers(grad_last, grad_last_im),
        strides(grad_y.unsqueeze(2), grad_u),
        pointers(grad_u, grad_mix, *parts, grad_D),
    )
    summed_mix = x.u.new_empty(0) if grad_mix is None else grad_mix.sum(0)
    summed = [each.sum(0) if each.numel() else each for each in parts[:4]]
    return [grad_u, summed_mix, *summed, *parts[4:], grad_D.sum(0)]


@_lti_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    x, need_mix = Operands(*arguments[:_COUNT]), arguments[-1]

    def like(shape: Any, imaginary: bool) -> Tensor:
        return x.u.new_empty(0 if imaginary and x.decay_im is None else shape)

    parameters = [like(x.decay.shape, i % 2 == 1) for i in range(4)]
    states = [like((len(x.u), *x.decay.shape), i == 1) for i in range(2)]
    grad_mix = x.u.new_empty(x.mix.shape if need_mix else 0)
    return [torch.empty_like(x.u), grad_mix, *parameters, *states, x.u.new_empty(x.u.shape[2:])]


def _torch_form(*tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The same map in torch operators."""
    x = Operands(*tensors)

    def turned(re: Tensor, im: Tensor | None) -> Tensor:
        return (re if im is None else torch.complex(re, im)).transpose(-1, -2)

    state = None if x.state is None else turned(x.state, x.state_im)
    decay, weight = turned(x.decay, x.decay_im), turned(x.weight, x.weight_im)
    y, last = sequential_scan(x.u, decay, weight, x.mix, x.D, x.lengths, state)
    last = last.transpose(-1, -2)
    return y, *((last.real, last.imag) if last.is_complex() else (last, x.u.new_empty(0)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_y: Tensor, grad_last: Tensor, grad_last_im: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    if beyond_first(grad_y):
        return torch_gradients(_torch_form, inputs, (grad_y, grad_last, grad_last_im))
    grads = _lti_backward(
        *inputs,
        inner_contiguous(grad_y),
        grad_last.contiguous(),
        grad_last_im.contiguous(),
        ctx.needs_input_grad[1],
    )
    return *(grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad, strict=False)), None


torch.library.register_autograd("msssm::lti", _backward, setup_context=_setup_context)


def scan(
    u: Tensor,
    decay: Tensor,
    weight: Tensor,
    mix: Tensor,
    D: Tensor | None,
    lengths: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Runs h_t = decay h_{t-1} + u_t, y_t = sum_m mix_t[m] (Re sum_n weight h_t + D u_t) up to each row's length.

    Shapes: u (B, L, M, D), mix (B, L, M, H), D (M, D) float32; decay and weight (M, D, N), state (B, M, D, N), float32
    or complex64. Returns y (B, L, D) and the last state (B, M, D, N).
    """
    skip = None if D is None else D.contiguous()
    mixed = inner_contiguous(u), inner_contiguous(mix)
    y, last, last_im = _lti(*mixed, *planes(decay), *planes(weight), *planes(state), skip, lengths)
    if decay.is_complex():
        last = torch.complex(last, last_im)
    return y, last.transpose(2, 3)
