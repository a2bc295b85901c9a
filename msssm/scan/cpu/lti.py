"""The native time-invariant recurrence: `lti.cpp` behind two `torch.library` operators, float32 only."""

from typing import Any

import torch
from torch import Tensor

from msssm.operands import WHOLE, dense, dense_or_none, inner_contiguous, strided
from msssm.recompute import kept
from msssm.scan.cpu.library import integers, native, planes, pointer, pointers, strides
from msssm.transforms import beyond_first, plain_gradients


def _sizes(u: Tensor, mix: Tensor, decay: Tensor, imaginary: Tensor | None) -> Any:
    batch, length, bands, channels = u.shape
    return integers(
        batch, length, bands, channels, decay.shape[1], mix.shape[-1], imaginary is not None, torch.get_num_threads()
    )


def _as_read(*operands: Any) -> Any:
    """Checks an operator's tensors and makes them readable by the native functions."""
    u, mix, decay, decay_im, weight, weight_im, initial, initial_im, D, lengths = operands
    batch, length, bands, channels = u.shape
    parameter = (bands, decay.shape[1], channels)
    return (
        strided(u, u.shape),
        strided(mix, (batch, length, bands, mix.shape[-1])),
        dense(decay, parameter),
        dense_or_none(decay_im, parameter),
        dense(weight, parameter),
        dense_or_none(weight_im, parameter),
        dense_or_none(initial, (batch, *parameter)),
        dense_or_none(initial_im, (batch, *parameter)),
        dense_or_none(D, (bands, channels)),
        dense_or_none(lengths, (batch,), WHOLE),
    )


@torch.library.custom_op("msssm::lti", mutates_args=(), device_types="cpu")
@kept
def _lti(
    u: Tensor,
    mix: Tensor,
    decay: Tensor,
    decay_im: Tensor | None,
    weight: Tensor,
    weight_im: Tensor | None,
    initial: Tensor | None,
    initial_im: Tensor | None,
    D: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs `lti_scan` with real and imaginary parts of decay, weight (M, N, D) and initial (B, M, N, D) as tensors.

    Returns y (B, L, D) and the real and imaginary part of the last state, the latter empty for a real recurrence.
    """
    u, mix, decay, decay_im, weight, weight_im, initial, initial_im, D, lengths = _as_read(
        u, mix, decay, decay_im, weight, weight_im, initial, initial_im, D, lengths
    )
    y, last, last_im = _lti_fake(u, mix, decay, decay_im)
    native().msssm_lti_forward(
        _sizes(u, mix, decay, decay_im),
        strides(u, mix),
        pointers(u, mix, decay, decay_im, weight, weight_im, initial, initial_im, D),
        pointer(lengths),
        pointer(y),
        pointers(last, last_im),
    )
    return y, last, last_im


@_lti.register_fake
def _lti_fake(
    u: Tensor, mix: Tensor, decay: Tensor, decay_im: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _, channels = u.shape
    state = (batch, *decay.shape)
    return (
        u.new_empty(batch, length, channels),
        u.new_empty(state),
        u.new_empty(state if decay_im is not None else (0,)),
    )


@torch.library.custom_op("msssm::lti_backward", mutates_args=(), device_types="cpu")
def _lti_backward(
    u: Tensor,
    mix: Tensor,
    decay: Tensor,
    decay_im: Tensor | None,
    weight: Tensor,
    weight_im: Tensor | None,
    initial: Tensor | None,
    initial_im: Tensor | None,
    D: Tensor | None,
    lengths: Tensor | None,
    grad_y: Tensor,
    grad_last: Tensor,
    grad_last_im: Tensor,
    need_mix: bool,
) -> list[Tensor]:
    """Computes the gradients of u, mix (empty unless needed), both parts of decay, weight and initial, and D."""
    u, mix, decay, decay_im, weight, weight_im, initial, initial_im, D, lengths = _as_read(
        u, mix, decay, decay_im, weight, weight_im, initial, initial_im, D, lengths
    )
    batch, length, bands, channels = u.shape
    grad_y, grad_last = strided(grad_y, (batch, length, channels)), dense(grad_last, (batch, *decay.shape))
    grad_last_im = dense(grad_last_im, (0,) if decay_im is None else grad_last.shape)
    groups = int(native().msssm_groups(batch, channels))
    grad_u = torch.empty_like(u)
    grad_mix = u.new_zeros(groups, *mix.shape) if need_mix else None
    # Partial sums per row of the batch, added up below.
    parts = [u.new_empty(0 if i % 2 and decay_im is None else (batch, *decay.shape)) for i in range(6)]
    grad_D = u.new_empty(batch, bands, channels)
    native().msssm_lti_backward(
        _sizes(u, mix, decay, decay_im),
        strides(u, mix),
        pointers(u, mix, decay, decay_im, weight, weight_im, initial, initial_im, D),
        pointer(lengths),
        pointer(grad_y),
        pointers(grad_last, grad_last_im),
        strides(grad_y.unsqueeze(2), grad_u),
        pointers(grad_u, grad_mix, *parts, grad_D),
    )
    summed_mix = u.new_empty(0) if grad_mix is None else grad_mix.sum(0)
    summed = [x.sum(0) if x.numel() else x for x in parts[:4]]
    return [grad_u, summed_mix, *summed, *parts[4:], grad_D.sum(0)]


@_lti_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    u, mix, decay, decay_im, *_, grad_last, _, need_mix = arguments

    def like(shape: Any, imaginary: bool) -> Tensor:
        return u.new_empty(0 if imaginary and decay_im is None else shape)

    parameters = [like(decay.shape, i % 2 == 1) for i in range(4)]
    states = [like(grad_last.shape, i == 1) for i in range(2)]
    grad_mix = u.new_empty(mix.shape if need_mix else 0)
    return [torch.empty_like(u), grad_mix, *parameters, *states, u.new_empty(u.shape[2:])]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_y: Tensor, grad_last: Tensor, grad_last_im: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    if beyond_first(grad_y):
        return plain_gradients("msssm::lti", inputs, (grad_y, grad_last, grad_last_im))
    grads = _lti_backward(
        *inputs,
        inner_contiguous(grad_y),
        grad_last.contiguous(),
        grad_last_im.contiguous(),
        ctx.needs_input_grad[1],
    )
    return *(grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad, strict=False)), None


torch.library.register_autograd("msssm::lti", _backward, setup_context=_setup_context)


def lti_scan(
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
    y, last, last_im = _lti(
        inner_contiguous(u),
        inner_contiguous(mix),
        *planes(decay),
        *planes(weight),
        *planes(state),
        skip,
        lengths,
    )
    if decay.is_complex():
        last = torch.complex(last, last_im)
    return y, last.transpose(2, 3)
