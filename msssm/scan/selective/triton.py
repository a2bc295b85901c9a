"""The selective scan on a GPU: `selective_kernels` behind two `torch.library` operators.

The operators have fake implementations and a backward, for autograd, `torch.compile` and `torch.export`.
"""

from typing import Any

import torch
from torch import Tensor

from msssm.recompute import kept
from msssm.scan.operands import FLOAT32, HALF_OR_FULL, WHOLE, dense, dense_or_none, schema
from msssm.scan.selective.operands import Operands
from msssm.scan.selective.torch import sequential_scan
from msssm.scan.selective.triton_common import (
    AHEAD,
    CHANNELS,
    OPTIONS,
    TILE,
    add_up,
    block_of_states,
    cdiv,
    cut,
    empty,
    options,
    over_heads,
    run_chain,
)
from msssm.scan.selective.triton_kernels import backward, carry_back, forward
from msssm.transforms import beyond_first, torch_gradients

_OPERANDS = schema(Operands)
_COUNT = len(Operands._fields)


def _sizes(x: Operands, block_of_channels: int) -> dict[str, int]:
    _, _, bands, channels = x.u.shape
    states = x.A.shape[1]
    return {
        "BANDS": bands,
        "D": channels,
        "N": states,
        "HEADS": x.mix.shape[-1],
        "BLOCK_N": block_of_states(states),
        "BLOCK_D": block_of_channels,
    }


def _blocks(sizes: dict[str, int]) -> tuple[int, int]:
    return cdiv(sizes["N"], sizes["BLOCK_N"]), cdiv(sizes["D"], sizes["BLOCK_D"])


def _first_states(initial: Tensor, own: Tensor, A: Tensor, totals: Tensor, reverse: bool) -> None:
    """Replaces each chunk's own contribution by the state (or, in reverse, the gradient) that enters the chunk."""
    decay = torch.exp(totals.unsqueeze(3) * A)
    run_chain(decay, own, initial, reverse)


def _as_read(x: Operands) -> Operands:
    """Checks the tensors and makes them readable by the kernels."""
    batch, length, bands, channels = x.u.shape
    N, heads, device = x.B.shape[-1], x.mix.shape[-1], x.u.device
    varying = (batch, length, bands)
    return Operands(
        dense(x.u, x.u.shape, HALF_OR_FULL, device),
        dense(x.delta, x.u.shape, HALF_OR_FULL, device),
        dense(x.A, (bands, N, channels), FLOAT32, device),
        dense(x.B, (*varying, N), HALF_OR_FULL, device),
        dense(x.C, (*varying, N), HALF_OR_FULL, device),
        dense(x.mix, (*varying, heads), HALF_OR_FULL, device),
        dense_or_none(x.D, (bands, channels), FLOAT32, device),
        None,
        dense_or_none(x.delta_bias, (bands, channels), FLOAT32, device),
        dense_or_none(x.lengths, (batch,), WHOLE, device),
        dense_or_none(x.state, (batch, *x.A.shape), FLOAT32, device),
    )


def _inputs(x: Operands) -> tuple[Tensor | None, ...]:
    """The kernels' first arguments."""
    return x.u, x.delta, x.A, x.B, x.C, x.mix, x.D, x.delta_bias, x.lengths


def _words(x: Tensor) -> Tensor:
    """Returns x, copied unless the kernels may read it in words of 32 bits."""
    return x if x.data_ptr() % 4 == 0 else x.clone()


@torch.library.custom_op(
    "msssm::triton_selective",
    mutates_args=(),
    schema=f"({_OPERANDS}, bool zoh, bool keep) -> (Tensor, Tensor, Tensor)",
)
@kept
def _selective(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Runs `scan` on turned operands, without a delta_weight and filters.

    Returns y (B, L, D), the last state, and with `keep` the states before each tile of steps, (B, tiles, M, N, D).
    """
    *tensors, zoh, keep = arguments
    x = _as_read(Operands(*tensors))
    u, A, lengths = x.u, x.A, x.lengths
    batch, length, bands, channels = u.shape
    sizes = _sizes(x, CHANNELS)
    state_blocks, channel_blocks = _blocks(sizes)
    programs = batch * bands * state_blocks * channel_blocks
    chunks, span = cut(programs, length, u.device)
    _, last, checkpoints = _selective_fake(*x, zoh, keep)
    initial = torch.zeros_like(last) if x.state is None else x.state
    parts = bands * state_blocks
    y = empty(lengths is not None and parts == 1)(
        batch, length, parts, channels, dtype=u.dtype if parts == 1 else torch.float32, device=u.device
    )
    inputs = _inputs(x._replace(B=_words(x.B), C=_words(x.C)))
    how = sizes | options(u.dtype, sizes["N"] == sizes["BLOCK_N"]) | {"ZOH": zoh, "TILE": TILE, "AHEAD": AHEAD}
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
    x, keep = Operands(*arguments[:_COUNT]), arguments[-1]
    u, A = x.u, x.A
    batch, length, _, channels = u.shape
    tiles = -(-length // TILE) if keep else 0
    return u.new_empty(batch, length, channels), A.new_empty(batch, *A.shape), A.new_empty(batch, tiles, *A.shape)


@torch.library.custom_op(
    "msssm::triton_selective_backward",
    mutates_args=(),
    schema=f"({_OPERANDS}, Tensor checkpoints, Tensor grad_y, Tensor grad_last, bool zoh) -> Tensor[]",
)
def _selective_backward(*arguments: Any) -> list[Tensor]:
    """Computes the gradients of u, delta, A, B, C, mix, D and delta_bias (uninitialised if None), and the state."""
    *tensors, checkpoints, grad_y, grad_last, zoh = arguments
    x = _as_read(Operands(*tensors))
    u, delta, A, mix, lengths = x.u, x.delta, x.A, x.mix, x.lengths
    batch, length, bands, channels = u.shape
    checkpoints = dense(checkpoints, (batch, cdiv(length, TILE), *A.shape), FLOAT32, u.device)
    grad_y = dense(grad_y, (batch, length, channels), HALF_OR_FULL, u.device)
    grad_last = dense(grad_last, (batch, *A.shape), FLOAT32, u.device)
    # Two states before a step, their gradients and those of A leave no registers for more channels or steps.
    sizes = _sizes(x, 32)
    state_blocks, channel_blocks = _blocks(sizes)
    block = 2 if not zoh and sizes["N"] == sizes["BLOCK_N"] else 1
    programs = batch * bands * state_blocks * channel_blocks
    chunks, span = cut(programs, length, u.device)
    padded = lengths is not None
    wide: dict[str, Any] = {"dtype": torch.float32, "device": u.device}
    times = (batch, length, bands)
    grad_u, grad_delta = (
        empty(padded and state_blocks == 1)(
            *times, state_blocks, channels, dtype=each.dtype if state_blocks == 1 else torch.float32, device=u.device
        )
        for each in (u, delta)
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
                delta, A, _words(x.C), mix, x.delta_bias, lengths, grad_y, carries, totals, length, span, chunks,
                **sizes, TILE=TILE, AHEAD=2, **OPTIONS,
            )  # fmt: skip
            _first_states(grad_last, carries, A, totals, reverse=True)
        scratch = grad_A.new_empty(programs * chunks, TILE // block, sizes["BLOCK_N"], sizes["BLOCK_D"])
        inputs = (*_inputs(x), checkpoints, grad_y, carries, scratch)
        grads = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_mix, grad_skip, grad_bias)
        backward[(programs * chunks,)](
            *inputs, *grads, length, span, chunks, **sizes, ZOH=zoh, TILE=TILE, BLOCK=block, **OPTIONS
        )
        return [
            add_up(grad_u, lengths, u.dtype),
            add_up(grad_delta, lengths, delta.dtype),
            grad_A.sum((0, 1)),
            add_up(grad_B, lengths, x.B.dtype),
            add_up(grad_C, lengths, x.C.dtype),
            over_heads(grad_mix, mix),
            grad_skip.sum((0, 1)),
            grad_bias.sum((0, 1, 3)),
            carries[:, 0].clone(),
        ]


@_selective_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    x = Operands(*arguments[:_COUNT])
    per_band = [x.A.new_empty(x.u.shape[2:]) for _ in range(2)]
    state = x.A.new_empty(len(x.u), *x.A.shape)
    return [*(torch.empty_like(each) for each in (x.u, x.delta, x.A, x.B, x.C, x.mix)), *per_band, state]


def _torch_form(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The same map in torch operators."""
    *tensors, zoh, _ = arguments
    y, last = sequential_scan(Operands(*tensors).turned(), "zoh" if zoh else "euler")
    return y, last.transpose(2, 3)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.zoh, _ = inputs
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, checkpoints = ctx.saved_tensors
    if beyond_first(grad_y):
        return torch_gradients(_torch_form, (*inputs, ctx.zoh, False), (grad_y, grad_last))
    *found, grad_D, grad_bias, grad_state = _selective_backward(
        *inputs, checkpoints, grad_y.contiguous(), grad_last.contiguous(), ctx.zoh
    )
    x = Operands(*inputs)
    grads = Operands(*found[:6])._replace(
        D=None if x.D is None else grad_D,
        delta_bias=None if x.delta_bias is None else grad_bias,
        state=None if x.state is None else grad_state,
    )
    return *grads, None, None


torch.library.register_autograd("msssm::triton_selective", _backward, setup_context=_setup_context)


def scan(operands: Operands, discretization: str) -> tuple[Tensor, Tensor]:
    """Runs the fused recurrence, skip and mix of `msssm.scan.multiscale_scan`, with step sizes in full rank.

    Each of u, delta, B, C and mix is float32, float16 or bfloat16; the others are float32. Returns y (B, L, D) in the
    dtype of u, and the last state (B, M, D, N) in float32.
    """
    tensors = [None if x is None else x.contiguous() for x in operands.turned()]
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    y, last, _ = _selective(*tensors, discretization == "zoh", keep)
    return y, last.transpose(2, 3)
