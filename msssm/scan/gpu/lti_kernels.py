"""Kernels of the time-invariant scan, real and complex. Complex tensors come as two planes, real parts first.

No checkpoints: with the sensitivities s_t = a s_{t-1} + h_{t-1}, one more forward pass accumulates the gradients of the
parameters, sum_t g_t conj(h_t) and conj(weight sum_t g_t s_t), while a reverse pass gives those of the inputs. Chunks
of the sequence are sequences of their own, with the gradient that comes into their last state.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
# Triton has no types.

import triton
import triton.language as tl

from msssm.scan.gpu import common
from msssm.scan.gpu.common import SIZES, place


def block_of_states(states: int, is_complex: bool) -> int:
    """States that one program keeps: complex ones take two registers each."""
    return common.block_of_states(states, common.MOST_STATES // 2 if is_complex else common.MOST_STATES)


@triton.jit
def read(planes, at, apart, real, COMPLEX: tl.constexpr):
    """Real and imaginary part; the latter is a copy of the former where there is none."""
    x = tl.load(planes + at, mask=real, other=0.0)
    y = x
    if COMPLEX:
        y = tl.load(planes + apart + at, mask=real, other=0.0)
    return x, y


@triton.jit
def write(planes, at, apart, x, y, real, COMPLEX: tl.constexpr):
    tl.store(planes + at, x, mask=real)
    if COMPLEX:
        tl.store(planes + apart + at, y, mask=real)


@triton.jit
def multiply_add(a, b, x, y, p, q, COMPLEX: tl.constexpr):
    """(a + ib) (x + iy) + (p + iq)."""
    if COMPLEX:
        first = a * x - b * y + p
        second = a * y + b * x + q
    else:
        first = a * x + p
        second = first
    return first, second


@triton.jit(do_not_specialize=[*SIZES, "planes_apart"])
def forward(u, decay, weight, mix, skip, lengths, states, scratch, y,
            length, span, chunks, planes_apart,
            BANDS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr, COMPLEX: tl.constexpr,
            TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """states (planes, B, chunks, M, N, D): before each chunk when called, after it on return.

    Writes y (B, L, state blocks, D). Without y it is the first pass, which needs no tiles.
    """
    row, chunk, _band, state_block, channel_block, begin, end = place(
        lengths, length, span, chunks, 1, D, N, BLOCK_N, BLOCK_D
    )
    state_blocks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    lane = tl.arange(0, BLOCK_D)
    d = channel_block * BLOCK_D + lane
    n = state_block * BLOCK_N + tl.arange(0, BLOCK_N)
    real = (n < N)[:, None] & (d < D)[None, :]
    once = d + state_block * D < D
    own = n[:, None] * D + tl.multiple_of(d, 1)[None, :]
    tile, slot = span, scratch
    if y is not None:
        tile = TILE
        slot = scratch + tl.program_id(0).to(tl.int64) * (TILE * BLOCK_D) + lane
    for start in range(begin, end, tile):
        stop = tl.minimum(start + tile, end)
        for m in range(BANDS):
            state_at = ((row * chunks + chunk) * BANDS + m) * (N * D) + own
            h, k = read(states, state_at, planes_apart, real, COMPLEX)
            a, b = read(decay, m * N * D + own, BANDS * N * D, real, COMPLEX)
            v, w = read(weight, m * N * D + own, BANDS * N * D, real, COMPLEX)
            through = tl.zeros((BLOCK_D,), tl.float32)
            if skip is not None:
                through = tl.load(skip + m * D + d, mask=once, other=0.0)
            for t in range(start, stop):
                at = (row * length + t) * BANDS + m
                x = tl.load(u + at * D + d, mask=d < D, other=0.0).to(tl.float32)
                h, k = multiply_add(a, b, h, k, x[None, :], 0.0, COMPLEX)
                if y is not None:
                    terms = v * h
                    if COMPLEX:
                        terms -= w * k
                    e = tl.load(mix + at * HEADS + d * HEADS // D, mask=d < D, other=0.0).to(tl.float32)
                    out = e * (tl.sum(terms, 0) + through * x)
                    if m > 0:
                        out += tl.load(slot + (t - start) * BLOCK_D)
                    if m < BANDS - 1:
                        tl.store(slot + (t - start) * BLOCK_D, out)
                    else:
                        y_at = y + ((row * length + t) * state_blocks + state_block) * D + d
                        tl.store(y_at, out, mask=d < D)
            write(states, state_at, planes_apart, h, k, real, COMPLEX)
        # The next tile reads states that other threads may have written.
        tl.debug_barrier()


@triton.jit(do_not_specialize=[*SIZES, "planes_apart"])
def reverse(decay, weight, mix, skip, lengths, grad_y, carries, grad_u,
            length, span, chunks, planes_apart,
            BANDS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr, COMPLEX: tl.constexpr,
            BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """carries (planes, B, chunks, M, N, D): gradient of the state after each chunk when called, before it on return.

    Writes grad_u (B, L, M, state blocks, D), unless it is the first pass.
    """
    row, chunk, m, state_block, channel_block, begin, end = place(
        lengths, length, span, chunks, BANDS, D, N, BLOCK_N, BLOCK_D
    )
    state_blocks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    d = channel_block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = state_block * BLOCK_N + tl.arange(0, BLOCK_N)
    real = (n < N)[:, None] & (d < D)[None, :]
    once = d + state_block * D < D
    own = n[:, None] * D + tl.multiple_of(d, 1)[None, :]
    carry_at = ((row * chunks + chunk) * BANDS + m) * (N * D) + own
    g, k = read(carries, carry_at, planes_apart, real, COMPLEX)
    a, b = read(decay, m * N * D + own, BANDS * N * D, real, COMPLEX)
    v, w = read(weight, m * N * D + own, BANDS * N * D, real, COMPLEX)
    through = tl.zeros((BLOCK_D,), tl.float32)
    if skip is not None:
        through = tl.load(skip + m * D + d, mask=once, other=0.0)
    for back in range(begin, end):
        t = begin + end - 1 - back
        at = (row * length + t) * BANDS + m
        e = tl.load(mix + at * HEADS + d * HEADS // D, mask=d < D, other=0.0).to(tl.float32)
        grad = e * tl.load(grad_y + (row * length + t) * D + d, mask=d < D, other=0.0).to(tl.float32)
        # The conjugates of decay and weight.
        g += v * grad[None, :]
        if COMPLEX:
            k -= w * grad[None, :]
        if grad_u is not None:
            grad_at = grad_u + (at * state_blocks + state_block) * D + d
            tl.store(grad_at, tl.sum(g, 0) + through * grad, mask=d < D)
        g, k = multiply_add(a, -b, g, k, 0.0, 0.0, COMPLEX)
    write(carries, carry_at, planes_apart, g, k, real, COMPLEX)


@triton.jit(do_not_specialize=[*SIZES, "planes_apart"])
def sums(u, decay, weight, mix, skip, lengths, grad_y, states, carries, grad_decay, grad_weight, grad_mix, grad_skip,
         length, span, chunks, planes_apart,
         BANDS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr, COMPLEX: tl.constexpr,
         BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Gradients of the parameters, from the states before and the gradients after each chunk.

    Partial sums: grad_decay, grad_weight (planes, B, chunks, M, N, D); grad_skip (B, chunks, M, D); grad_mix
    (B, L, M, state blocks, D), or (B, L, M, state blocks, channel blocks) with one head.
    """
    row, chunk, m, state_block, channel_block, begin, end = place(
        lengths, length, span, chunks, BANDS, D, N, BLOCK_N, BLOCK_D
    )
    channel_blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    state_blocks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    d = channel_block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = state_block * BLOCK_N + tl.arange(0, BLOCK_N)
    real = (n < N)[:, None] & (d < D)[None, :]
    once = d + state_block * D < D
    own = n[:, None] * D + tl.multiple_of(d, 1)[None, :]
    place_of = (row * chunks + chunk) * BANDS + m
    state_at = place_of * (N * D) + own
    h, k = read(states, state_at, planes_apart, real, COMPLEX)
    a, b = read(decay, m * N * D + own, BANDS * N * D, real, COMPLEX)
    v, w = read(weight, m * N * D + own, BANDS * N * D, real, COMPLEX)
    through = tl.zeros((BLOCK_D,), tl.float32)
    if skip is not None:
        through = tl.load(skip + m * D + d, mask=once, other=0.0)
    zero = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    slope, imaginary_slope = zero, zero
    sum_h, sum_k, sum_slope, sum_imaginary = zero, zero, zero, zero
    sum_skip = tl.zeros((BLOCK_D,), tl.float32)
    for t in range(begin, end):
        at = (row * length + t) * BANDS + m
        x = tl.load(u + at * D + d, mask=d < D, other=0.0).to(tl.float32)
        e = tl.load(mix + at * HEADS + d * HEADS // D, mask=d < D, other=0.0).to(tl.float32)
        grad_mixed = tl.load(grad_y + (row * length + t) * D + d, mask=d < D, other=0.0).to(tl.float32)
        grad = e * grad_mixed
        slope, imaginary_slope = multiply_add(a, b, slope, imaginary_slope, h, k, COMPLEX)
        h, k = multiply_add(a, b, h, k, x[None, :], 0.0, COMPLEX)
        sum_h += grad[None, :] * h
        sum_slope += grad[None, :] * slope
        terms = v * h
        if COMPLEX:
            sum_k += grad[None, :] * k
            sum_imaginary += grad[None, :] * imaginary_slope
            terms -= w * k
        product = grad_mixed * (tl.sum(terms, 0) + through * x)
        if HEADS == 1:
            mixed_at = (at * state_blocks + state_block) * channel_blocks + channel_block
            tl.store(grad_mix + mixed_at, tl.sum(product, 0))
        else:
            tl.store(grad_mix + (at * state_blocks + state_block) * D + d, product, mask=d < D)
        sum_skip += grad * x
    g, q = read(carries, state_at, planes_apart, real, COMPLEX)
    if COMPLEX:
        # conj(weight sum) + conj(slope) (g + iq)
        through_outputs, imaginary = multiply_add(v, w, sum_slope, sum_imaginary, 0.0, 0.0, COMPLEX)
        total, imaginary = multiply_add(slope, -imaginary_slope, g, q, through_outputs, -imaginary, COMPLEX)
    else:
        total = v * sum_slope + slope * g
        imaginary = total
    write(grad_decay, state_at, planes_apart, total, imaginary, real, COMPLEX)
    write(grad_weight, state_at, planes_apart, sum_h, -sum_k, real, COMPLEX)
    if skip is not None:
        tl.store(grad_skip + place_of * D + d, sum_skip, mask=once)
