"""The selective scan on a GPU: `selective_kernels` behind two `torch.library` operators.

The operators have fake implementations and a backward, for autograd, `torch.compile` and `torch.export`.
"""

from typing import Any

import torch
from torch import Tensor

from msssm.operands import FLOAT32, HALF_OR_FULL, WHOLE, dense, dense_or_none
from msssm.recompute import kept
from msssm.scan.triton.common import (
    OPTIONS,
    TILE,
    add_up,
    block_of_states,
    cdiv,
    configuration,
    cut,
    empty,
    over_heads,
    run_chain,
)
from msssm.scan.triton.selective_kernels import backward, carry_back, forward
from msssm.transforms import beyond_first, plain_gradients


def _sizes(u: Tensor, A: Tensor, mix: Tensor, block_of_channels: int) -> dict[str, int]:
    _, _, bands, channels = u.shape
    states = A.shape[1]
    return {
        "BANDS": bands,
        "D": channels,
        "N": states,
        "HEADS": mix.shape[-1],
        "BLOCK_N": block_of_states(states),
        "BLOCK_D": block_of_channels,
    }


def _blocks(sizes: dict[str, int]) -> tuple[int, int]:
    return cdiv(sizes["N"], sizes["BLOCK_N"]), cdiv(sizes["D"], sizes["BLOCK_D"])


def _first_states(initial: Tensor, own: Tensor, A: Tensor, totals: Tensor, reverse: bool) -> None:
    """Replaces each chunk's own contribution by the state (or, in reverse, the gradient) that enters the chunk."""
    decay = torch.exp(totals.unsqueeze(3) * A)
    run_chain(decay.unsqueeze(0), own.unsqueeze(0), initial.unsqueeze(0), reverse)


def _as_read(*operands: Any) -> Any:
    """Checks an operator's tensors and makes them readable by the kernels."""
    u, delta, A, B, C, mix, D, delta_bias, lengths = operands
    batch, length, bands, channels = u.shape
    N, heads, device = B.shape[-1], mix.shape[-1], u.device
    return (
        dense(u, u.shape, HALF_OR_FULL, device),
        dense(delta, u.shape, HALF_OR_FULL, device),
        dense(A, (bands, N, channels), FLOAT32, device),
        dense(B, (batch, length, bands, N), HALF_OR_FULL, device),
        dense(C, (batch, length, bands, N), HALF_OR_FULL, device),
        dense(mix, (batch, length, bands, heads), HALF_OR_FULL, device),
        dense_or_none(D, (bands, channels), FLOAT32, device),
        dense_or_none(delta_bias, (bands, channels), FLOAT32, device),
        dense_or_none(lengths, (batch,), WHOLE, device),
    )


def _words(x: Tensor) -> Tensor:
    """Returns x, copied unless the kernels may read it in words of 32 bits."""
    return x if x.data_ptr() % 4 == 0 else x.clone()


@torch.library.custom_op("msssm::triton_selective", mutates_args=())
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
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs `scan` with A (M, N, D) and states (B, M, N, D).

    Returns y (B, L, D), the last state, and with `keep` the states before each tile of steps, (B, tiles, M, N, D).
    """
    u, delta, A, B, C, mix, D, delta_bias, lengths = _as_read(u, delta, A, B, C, mix, D, delta_bias, lengths)
    batch, length, bands, channels = u.shape
    initial = dense_or_none(initial, (batch, *A.shape), FLOAT32, u.device)
    chosen = configuration("selective", u.device)
    sizes = _sizes(u, A, mix, chosen.channels)
    state_blocks, channel_blocks = _blocks(sizes)
    programs = batch * bands * state_blocks * channel_blocks
    chunks, span = cut(programs, length, u.device)
    _, last, checkpoints = _selective_fake(u, delta, A, keep)
    if initial is None:
        initial = torch.zeros_like(last)
    parts = bands * state_blocks
    y = empty(lengths is not None and parts == 1)(
        batch, length, parts, channels, dtype=u.dtype if parts == 1 else torch.float32, device=u.device
    )
    inputs = (u, delta, A, _words(B), _words(C), mix, D, delta_bias, lengths)
    how = (
        sizes
        | chosen.options(u.dtype, sizes["N"] == sizes["BLOCK_N"])
        | {"ZOH": zoh, "TILE": TILE, "AHEAD": chosen.ahead}
    )
    with torch.cuda.device_of(u):
        if chunks == 1:
            states = initial.clone().unsqueeze(1)
        else:
            states = initial.new_zeros(batch, chunks, *initial.shape[1:])
            totals = initial.new_empty(batch, chunks, bands, channels)
            forward[(programs * chunks,)](*inputs, states, totals, None, None, length, span, chunks, **how)
            _first_states(initial, states, A, totals, reverse=False)
        kept = checkpoints if keep else None
        forward[(programs * chunks,)](*inputs, states, None, kept, y, length, span, chunks, **how)
        return add_up(y, lengths, u.dtype), last.copy_(states[:, -1]), checkpoints


@_selective.register_fake
def _selective_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    u, _, A, *_, keep = arguments
    batch, length, _, channels = u.shape
    tiles = -(-length // TILE) if keep else 0
    return u.new_empty(batch, length, channels), A.new_empty(batch, *A.shape), A.new_empty(batch, tiles, *A.shape)


@torch.library.custom_op("msssm::triton_selective_backward", mutates_args=())
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
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_last: Tensor,
    zoh: bool,
) -> list[Tensor]:
    """Computes the gradients of u, delta, A, B, C, mix, D and delta_bias (uninitialised if None), and initial."""
    u, delta, A, B, C, mix, D, delta_bias, lengths = _as_read(u, delta, A, B, C, mix, D, delta_bias, lengths)
    batch, length, bands, channels = u.shape
    checkpoints = dense(checkpoints, (batch, cdiv(length, TILE), *A.shape), FLOAT32, u.device)
    grad_y = dense(grad_y, (batch, length, channels), HALF_OR_FULL, u.device)
    grad_last = dense(grad_last, (batch, *A.shape), FLOAT32, u.device)
    # Two states before a step, their gradients and those of A leave no registers for more channels or steps.
    sizes = _sizes(u, A, mix, 32)
    state_blocks, channel_blocks = _blocks(sizes)
    block = 2 if not zoh and sizes["N"] == sizes["BLOCK_N"] else 1
    programs = batch * bands * state_blocks * channel_blocks
    chunks, span = cut(programs, length, u.device)
    padded = lengths is not None
    wide: dict[str, Any] = {"dtype": torch.float32, "device": u.device}
    times = (batch, length, bands)
    grad_u, grad_delta = (
        empty(padded and state_blocks == 1)(
            *times, state_blocks, channels, dtype=x.dtype if state_blocks == 1 else torch.float32, device=u.device
        )
        for x in (u, delta)
    )
    grad_B, grad_C = (
        empty(padded and channel_blocks == 1)(*times, channel_blocks, A.shape[1], **wide) for _ in range(2)
    )
    one_head = mix.shape[-1] == 1
    grad_mix = empty(padded)(*times, state_blocks, channel_blocks if one_head else channels, **wide)
    grad_A = torch.empty(batch, chunks, *A.shape, **wide)
    grad_skip = torch.empty(batch, chunks, bands, channels, **wide)
    grad_bias = torch.empty(batch, chunks, bands, state_blocks, channels, **wide)
    with torch.cuda.device_of(u):
        if chunks == 1:
            carries = grad_last.clone().unsqueeze(1)
        else:
            carries, totals = torch.empty_like(grad_A), torch.empty_like(grad_skip)
            carry_back[(programs * chunks,)](
                delta, A, _words(C), mix, delta_bias, lengths, grad_y, carries, totals, length, span, chunks,
                **sizes, TILE=TILE, AHEAD=2, **OPTIONS,
            )  # fmt: skip
            _first_states(grad_last, carries, A, totals, reverse=True)
        scratch = grad_A.new_empty(programs * chunks, TILE // block, sizes["BLOCK_N"], sizes["BLOCK_D"])
        inputs = (u, delta, A, B, C, mix, D, delta_bias, lengths, checkpoints, grad_y, carries, scratch)
        grads = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_mix, grad_skip, grad_bias)
        backward[(programs * chunks,)](
            *inputs, *grads, length, span, chunks, **sizes, ZOH=zoh, TILE=TILE, BLOCK=block, **OPTIONS
        )
        return [
            add_up(grad_u, lengths, u.dtype),
            add_up(grad_delta, lengths, delta.dtype),
            grad_A.sum((0, 1)),
            add_up(grad_B, lengths, B.dtype),
            add_up(grad_C, lengths, C.dtype),
            over_heads(grad_mix, mix),
            grad_skip.sum((0, 1)),
            grad_bias.sum((0, 1, 3)),
            carries[:, 0].clone(),
        ]


@_selective_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    u, delta, A, B, C, mix, *_, grad_last, _ = arguments
    per_band = [A.new_empty(u.shape[2:]) for _ in range(2)]
    return [*(torch.empty_like(x) for x in (u, delta, A, B, C, mix)), *per_band, torch.empty_like(grad_last)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.zoh, _ = inputs
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, initial, checkpoints = ctx.saved_tensors
    if beyond_first(grad_y):
        arguments = (*inputs, initial, ctx.zoh, False)
        return plain_gradients("msssm::triton_selective", arguments, (grad_y, grad_last))
    *_, D, delta_bias, _ = inputs
    *grads, grad_D, grad_bias, grad_initial = _selective_backward(
        *inputs, checkpoints, grad_y.contiguous(), grad_last.contiguous(), ctx.zoh
    )
    optional = (
        None if D is None else grad_D,
        None if delta_bias is None else grad_bias,
        None,
        None if initial is None else grad_initial,
    )
    return *grads, *optional, None, None


torch.library.register_autograd("msssm::triton_selective", _backward, setup_context=_setup_context)


def scan(*operands: Any, zoh: bool) -> tuple[Tensor, Tensor]:
    """Runs `msssm.scan.triton.multiscale_scan`, whose tensors come in its order."""
    u, delta, A, *others, state = operands
    given = (u, delta, A.transpose(1, 2), *others, None if state is None else state.transpose(2, 3))
    tensors: Any = [None if x is None else x.contiguous() for x in given]
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    y, last, _ = _selective(*tensors, zoh, needs_grad)
    return y, last.transpose(2, 3)
