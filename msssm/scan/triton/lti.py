"""The time-invariant scan on a GPU: `lti_kernels` behind two `torch.library` operators.

Inside, complex tensors have two planes, (2, ...), and real ones have one, (1, ...).
"""

from typing import Any

import torch
from torch import Tensor

from msssm.operands import FLOAT32, HALF_OR_FULL, WHOLE, dense, dense_or_none
from msssm.recompute import kept
from msssm.scan.triton.common import OPTIONS, TILE, add_up, cdiv, configuration, cut, empty, over_heads, run_chain
from msssm.scan.triton.lti_kernels import block_of_states, forward, reverse, sums
from msssm.transforms import beyond_first, plain_gradients


def _sizes(u: Tensor, decay: Tensor, mix: Tensor) -> dict[str, int]:
    planes, bands, states, channels = decay.shape
    chosen = configuration("lti", u.device)
    return {
        "BANDS": bands,
        "D": channels,
        "N": states,
        "HEADS": mix.shape[-1],
        "COMPLEX": planes == 2,
        "BLOCK_N": block_of_states(states, planes == 2),
        "BLOCK_D": chosen.channels,
        "AHEAD": chosen.ahead,
    }


def _options(u: Tensor) -> dict[str, Any]:
    return configuration("lti", u.device).options(u.dtype)


def _blocks(sizes: dict[str, int]) -> tuple[int, int]:
    return cdiv(sizes["N"], sizes["BLOCK_N"]), cdiv(sizes["D"], sizes["BLOCK_D"])


def _decay_of_chunks(decay: Tensor, lengths: Tensor | None, rows: int, length: int, chunks: int, span: int) -> Tensor:
    """Powers of decay by the steps of each chunk, (planes, B, chunks, M, N, D); in float64, for large phases."""
    begin = torch.arange(chunks, device=decay.device) * span
    end = torch.full((rows, 1), length, device=decay.device) if lengths is None else lengths.unsqueeze(1)
    steps = (end - begin).clamp(0, span).double()[:, :, None, None, None]
    wide = decay.double()
    if len(decay) == 1:
        return torch.pow(wide[0], steps).unsqueeze(0).float()
    radius = torch.hypot(*wide).pow(steps)
    angle = torch.atan2(wide[1], wide[0]) * steps
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle))).float()


def _first_states(
    u: Tensor,
    decay: Tensor,
    weight: Tensor,
    mix: Tensor,
    D: Tensor | None,
    lengths: Tensor | None,
    initial: Tensor,
    side_by_side: int,
) -> tuple[Tensor, int, int]:
    """The state before each chunk, (planes, B, chunks, M, N, D), the number of chunks, and that of their steps.

    `side_by_side` is the number of programs that will start from these states, per chunk and block of states and
    channels.
    """
    batch, length = u.shape[:2]
    sizes = _sizes(u, decay, mix)
    state_blocks, channel_blocks = _blocks(sizes)
    programs = batch * state_blocks * channel_blocks
    chunks, span = cut(programs * side_by_side, length, u.device)
    if chunks == 1:
        return initial.clone().unsqueeze(2), chunks, span
    states = initial.new_zeros(len(initial), batch, chunks, *initial.shape[2:])
    forward[(programs * chunks,)](
        u, decay, weight, mix, D, lengths, states, None, None,
        length, span, chunks, states[0].numel(), **sizes, TILE=TILE, **_options(u),
    )  # fmt: skip
    run_chain(_decay_of_chunks(decay, lengths, batch, length, chunks, span), states, initial, reverse=False)
    return states, chunks, span


def _as_read(
    u: Tensor, decay: Tensor, weight: Tensor, mix: Tensor, D: Tensor | None, lengths: Tensor | None, initial: Tensor
) -> Any:
    """Checks an operator's tensors and makes them readable by the kernels."""
    batch, length, bands, channels = u.shape
    planes, _, states, _ = decay.shape
    parameter, device = (bands, states, channels), u.device
    return (
        dense(u, u.shape, HALF_OR_FULL, device),
        dense(decay, (planes, *parameter), FLOAT32, device),
        dense(weight, (planes, *parameter), FLOAT32, device),
        dense(mix, (batch, length, bands, mix.shape[-1]), HALF_OR_FULL, device),
        dense_or_none(D, (bands, channels), FLOAT32, device),
        dense_or_none(lengths, (batch,), WHOLE, device),
        dense(initial, (planes, batch, *parameter), FLOAT32, device),
    )


@torch.library.custom_op("msssm::triton_lti", mutates_args=())
@kept
def _lti(
    u: Tensor, decay: Tensor, weight: Tensor, mix: Tensor, D: Tensor | None, lengths: Tensor | None, initial: Tensor
) -> tuple[Tensor, Tensor]:
    """Runs `scan` with decay and weight (planes, M, N, D) and states (planes, B, M, N, D)."""
    u, decay, weight, mix, D, lengths, initial = _as_read(u, decay, weight, mix, D, lengths, initial)
    batch, length, _, channels = u.shape
    sizes = _sizes(u, decay, mix)
    state_blocks, channel_blocks = _blocks(sizes)
    y = empty(lengths is not None and state_blocks == 1)(
        batch, length, state_blocks, channels, dtype=u.dtype if state_blocks == 1 else torch.float32, device=u.device
    )
    with torch.cuda.device_of(u):
        states, chunks, span = _first_states(u, decay, weight, mix, D, lengths, initial, 1)
        programs = batch * state_blocks * channel_blocks * chunks
        scratch = decay.new_empty(programs, TILE, sizes["BLOCK_D"])
        forward[(programs,)](
            u, decay, weight, mix, D, lengths, states, scratch, y,
            length, span, chunks, states[0].numel(), **sizes, TILE=TILE, **_options(u),
        )  # fmt: skip
        return add_up(y, lengths, u.dtype), states[:, :, -1].clone()


@_lti.register_fake
def _(
    u: Tensor, decay: Tensor, weight: Tensor, mix: Tensor, D: Tensor | None, lengths: Tensor | None, initial: Tensor
) -> tuple[Tensor, Tensor]:
    batch, length, _, channels = u.shape
    return u.new_empty(batch, length, channels), torch.empty_like(initial)


@torch.library.custom_op("msssm::triton_lti_backward", mutates_args=())
def _lti_backward(
    u: Tensor,
    decay: Tensor,
    weight: Tensor,
    mix: Tensor,
    D: Tensor | None,
    lengths: Tensor | None,
    initial: Tensor,
    grad_y: Tensor,
    grad_last: Tensor,
) -> list[Tensor]:
    """Computes the gradients of u, decay, weight, mix, D (uninitialised if D is None) and the initial state."""
    u, decay, weight, mix, D, lengths, initial = _as_read(u, decay, weight, mix, D, lengths, initial)
    batch, length, bands, channels = u.shape
    grad_y = dense(grad_y, (batch, length, channels), HALF_OR_FULL, u.device)
    grad_last = dense(grad_last, initial.shape, FLOAT32, u.device)
    sizes = _sizes(u, decay, mix)
    state_blocks, channel_blocks = _blocks(sizes)
    new = empty(lengths is not None)
    wide: dict[str, Any] = {"dtype": torch.float32, "device": u.device}
    grad_u = new(
        batch, length, bands, state_blocks, channels,
        dtype=u.dtype if state_blocks == 1 else torch.float32, device=u.device,
    )  # fmt: skip
    one_head = mix.shape[-1] == 1
    grad_mix = new(batch, length, bands, state_blocks, channel_blocks if one_head else channels, **wide)
    with torch.cuda.device_of(u):
        states, chunks, span = _first_states(u, decay, weight, mix, D, lengths, initial, bands)
        size = states[0].numel()
        grid = (batch * bands * state_blocks * channel_blocks * chunks,)
        carries = grad_last.clone().unsqueeze(2) if chunks == 1 else torch.zeros_like(states)
        reversing = (decay, weight, mix, D, lengths, grad_y, carries)
        if chunks > 1:
            reverse[grid](*reversing, None, length, span, chunks, size, **sizes, **_options(u))
            through = _decay_of_chunks(decay, lengths, batch, length, chunks, span)
            through[1:].neg_()
            run_chain(through, carries, grad_last, reverse=True)
        grad_decay, grad_weight = torch.empty_like(states), torch.empty_like(states)
        grad_skip = torch.empty(batch, chunks, bands, channels, **wide)
        sums[grid](
            u, decay, weight, mix, D, lengths, grad_y, states, carries, grad_decay, grad_weight, grad_mix, grad_skip,
            length, span, chunks, size, **sizes, **OPTIONS,
        )  # fmt: skip
        reverse[grid](*reversing, grad_u, length, span, chunks, size, **sizes, **_options(u))
    return [
        grad_u.squeeze(3) if state_blocks == 1 else grad_u.sum(3).to(u.dtype),
        grad_decay.sum((1, 2)),
        grad_weight.sum((1, 2)),
        over_heads(grad_mix, mix),
        grad_skip.sum((0, 1)),
        carries[:, :, 0].clone(),
    ]


@_lti_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    u, decay, weight, mix, _, _, initial, _, _ = arguments
    skip = decay.new_empty(u.shape[2:])
    return [torch.empty_like(x) for x in (u, decay, weight, mix, skip, initial)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    if beyond_first(grad_y):
        return plain_gradients("msssm::triton_lti", inputs, (grad_y, grad_last))
    *grads, grad_D, grad_initial = _lti_backward(*inputs, grad_y.contiguous(), grad_last.contiguous())
    return *grads, None if inputs[4] is None else grad_D, None, grad_initial


torch.library.register_autograd("msssm::triton_lti", _backward, setup_context=_setup_context)


def _planes(x: Tensor) -> Tensor:
    """Converts x (..., D, N), real or complex, to float32 planes (planes, ..., N, D)."""
    parts = torch.view_as_real(x).movedim(-1, 0) if x.is_complex() else x.unsqueeze(0)
    return parts.transpose(-1, -2).contiguous()


def scan(
    u: Tensor,
    decay: Tensor,
    weight: Tensor,
    mix: Tensor,
    D: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Runs `msssm.scan.triton.lti_scan`."""
    if initial_state is None:
        initial_state = decay.new_zeros(len(u), *decay.shape)
    skip = None if D is None else D.contiguous()
    y, last = _lti(
        u.contiguous(), _planes(decay), _planes(weight), mix.contiguous(), skip, lengths, _planes(initial_state)
    )
    last = last.transpose(-1, -2)
    return y, torch.complex(last[0], last[1]) if decay.is_complex() else last[0]
