"""The torch form of the selective scan: tiles of time steps that fit in a cache, and a backward that recomputes.

Nothing of size (B, L, M, D, N) is ever kept: the forward saves the state before each tile, and the backward recomputes
one tile of states at a time. Inside a tile the layout is (T, B, M, N, D), so that a time step is one contiguous
`addcmul_`, and sums over N or D are batched matrix-vector products.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msssm.padding import mask_padding
from msssm.recompute import kept
from msssm.scan.delta import full_rank, step_size
from msssm.scan.mixing import mix_bands
from msssm.scan.selective import reference
from msssm.scan.selective.operands import Operands
from msssm.transforms import beyond_first, torch_gradients

# Elements of one tile's buffer: a few of these (1 MiB each in float32) stay in the last-level cache.
TILE_ELEMENTS = 1 << 18
MIN_TILE, MAX_TILE = 4, 128
LOG2_E = 1.4426950408889634


class _Tile(NamedTuple):
    """One tile of T steps, time-major. `gain` is b_t / B_t; `drive` is B_t u_t."""

    decay: Tensor  # (T, B, M, N, D)
    gain: Tensor  # (T, B, M, N, D), or (T, B, M, 1, D) under Euler
    drive: Tensor  # (T, B, M, N, D)
    states: Tensor  # (T, B, M, N, D)


def _time_major(x: Tensor, start: int, stop: int) -> Tensor:
    return x[:, start:stop].transpose(0, 1).contiguous()


def _advance(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, state: Tensor, discretization: str) -> _Tile:
    """States of one tile. u, delta (T, B, M, D); A (M, N, D); B (T, B, M, N); state (B, M, N, D)."""
    step = delta.unsqueeze(-2)
    # exp2 with log2(e) folded into A is several times faster than exp on a CPU.
    decay = (step * (A * LOG2_E)).exp2_()
    if discretization == "zoh":
        # expm1(x) = (exp(x) + 1) tanh(x / 2): no cancellation at small x, and tanh is vectorised where expm1 is not.
        gain = (step * (A / 2)).tanh_().mul_(decay + 1).mul_(1 / A)
    else:
        gain = step
    drive = B.unsqueeze(-1) * u.unsqueeze(-2)
    states = gain * drive
    previous = state
    for t, decay_t in enumerate(decay.unbind(0)):
        previous = states[t].addcmul_(decay_t, previous)  # torch.export refuses in place what `unbind` gave
    return _Tile(decay, gain, drive, states)


def _contract_states(C: Tensor, x: Tensor) -> Tensor:
    """Computes sum_n C[..., n] x[..., n, d] as a batch of vector-matrix products."""
    T, batch, M, N, D = x.shape
    return torch.bmm(C.reshape(-1, 1, N), x.view(-1, N, D)).view(T, batch, M, D)


def _contract_channels(x: Tensor, u: Tensor) -> Tensor:
    """Computes sum_d x[..., n, d] u[..., d] as a batch of matrix-vector products."""
    T, batch, M, N, D = x.shape
    return torch.bmm(x.view(-1, N, D), u.reshape(-1, D, 1)).view(T, batch, M, N)


def _tile(u: Tensor, A: Tensor) -> int:
    """Number of steps of one tile."""
    return min(MAX_TILE, max(MIN_TILE, TILE_ELEMENTS // max(1, len(u) * A.numel())))


@kept
def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, discretization: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the last state, and the states before each tile, (tiles, B, M, N, D)."""
    length, tile = u.shape[1], _tile(u, A)
    A_nd = A.transpose(1, 2).contiguous()
    h = state.transpose(2, 3).contiguous()
    y = torch.empty_like(u)
    starts = range(0, length, tile)
    checkpoints = h.new_empty(len(starts), *h.shape)
    for index, start in enumerate(starts):
        stop = min(start + tile, length)
        checkpoints[index] = h
        states = _advance(
            _time_major(u, start, stop),
            _time_major(delta, start, stop),
            A_nd,
            _time_major(B, start, stop),
            h,
            discretization,
        ).states
        y[:, start:stop] = _contract_states(_time_major(C, start, stop), states).transpose(0, 1)
        h = states[-1].clone()
    return y, h.transpose(2, 3).contiguous(), checkpoints


class _TiledScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        state: Tensor,
        discretization: str,
    ) -> tuple[Tensor, Tensor]:
        y, last, checkpoints = _scan(u, delta, A, B, C, state, discretization)
        ctx.save_for_backward(u, delta, A, B, C, state, checkpoints)
        ctx.discretization = discretization
        return y, last

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, checkpoints = ctx.saved_tensors
        if beyond_first(grad_y):
            return torch_gradients(reference.banded_scan, (*inputs, ctx.discretization), (grad_y, grad_last))
        u, delta, A, B, C, _ = inputs
        A = A.transpose(1, 2).contiguous()
        length, tile, zoh = u.shape[1], _tile(u, A), ctx.discretization == "zoh"
        grad_u, grad_delta = torch.empty_like(u), torch.empty_like(delta)
        grad_B, grad_C = torch.empty_like(B), torch.empty_like(C)
        grad_A = torch.zeros_like(A)
        carry = grad_last.transpose(2, 3).contiguous()  # dLoss/dh flowing from the steps after the tile
        for index in reversed(range(len(checkpoints))):
            steps = slice(start := index * tile, stop := min(start + tile, length))
            u_t, delta_t, B_t, C_t, grad_t = (_time_major(x, start, stop) for x in (u, delta, B, C, grad_y))
            first = checkpoints[index]
            decay, gain, drive, states = _advance(u_t, delta_t, A, B_t, first, ctx.discretization)
            grad_C[:, steps] = _contract_channels(states, grad_t).transpose(0, 1)

            grad_h = C_t.unsqueeze(-1) * grad_t.unsqueeze(-2)
            grad_h[-1] += carry
            for t in range(len(grad_h) - 2, -1, -1):
                grad_h[t].addcmul_(decay[t + 1], grad_h[t + 1])
            carry = decay[0] * grad_h[0]

            # h_{t-1}, in place of h_t: the last state of the tile is no longer needed.
            previous = torch.cat((first.unsqueeze(0), states[:-1]))
            if zoh:
                # dh_t/ddelta_t = a_t (B_t u_t + A h_{t-1});  dh_t/dA adds the derivative of 1/A.
                slope = (drive + A * previous).mul_(decay).mul_(grad_h)
                grad_drive = grad_h.mul_(gain)
                grad_delta[:, steps] = slope.sum(-2).transpose(0, 1)
                grad_A += (slope.mul_(delta_t.unsqueeze(-2)).sub_(drive.mul_(grad_drive))).sum((0, 1)) / A
            else:
                slope = previous.mul_(decay).mul_(grad_h)
                grad_delta[:, steps] = (drive.mul_(grad_h).addcmul_(slope, A)).sum(-2).transpose(0, 1)
                grad_A += slope.mul_(delta_t.unsqueeze(-2)).sum((0, 1))
                grad_drive = grad_h.mul_(gain)
            grad_B[:, steps] = _contract_channels(grad_drive, u_t).transpose(0, 1)
            grad_u[:, steps] = _contract_states(B_t, grad_drive).transpose(0, 1)
        return grad_u, grad_delta, grad_A.transpose(1, 2), grad_B, grad_C, carry.transpose(2, 3), None


def banded_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    discretization: str,
) -> tuple[Tensor, Tensor]:
    """Computes `reference.banded_scan`; second derivatives run through that reference."""
    y, h = _TiledScan.apply(u, delta, A, B, C, state, discretization)
    return y, h


def multiscale_scan(
    operands: Operands,
    discretization: str,
    banded: Callable[..., tuple[Tensor, Tensor]] = banded_scan,
) -> tuple[Tensor, Tensor]:
    """Runs the whole operator, `msssm.scan.multiscale_scan`, around a scan of the bands, for bands in memory.

    Returns y (B, L, D) and the last state (B, M, D, N).
    """
    u, delta, A, B, C, mix, D, delta_weight, delta_bias, lengths, state, *_ = operands
    if delta_weight is not None:
        delta = full_rank(delta, delta_weight)
    u, delta, B, C, mix = (mask_padding(x, lengths) for x in (u, delta, B, C, mix))
    if delta_bias is not None:
        # A step of 0 does not change the state.
        delta = mask_padding(step_size(delta, delta_bias), lengths)
    if state is None:
        state = u.new_zeros(u.shape[0], *A.shape)
    y, last = banded(u, delta, A, B, C, state, discretization)
    return mix_bands(y if D is None else y + D * u, mix), last


def sequential_scan(operands: Operands, discretization: str) -> tuple[Tensor, Tensor]:
    """Runs the whole operator through the sequential reference, in the dtype of A; y has the dtype of u."""
    y, last = multiscale_scan(operands.to(operands.A.dtype), discretization, reference.banded_scan)
    return y.to(operands.u.dtype), last
