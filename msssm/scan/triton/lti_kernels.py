"""Kernels of the time-invariant scan, real and complex. Complex tensors are two planes, real parts first.

There are no checkpoints: with the sensitivities s_t = a s_{t-1} + h_{t-1}, one more forward pass accumulates the
gradients of the parameters, sum_t g_t conj(h_t) and conj(weight sum_t g_t s_t), and a reverse pass computes those of
the inputs. Each chunk of the sequence is treated as a sequence, given the gradient of its last state.

Parameters, unless a kernel says otherwise (P = 2 planes if COMPLEX, else 1):

    u                    inputs (B, L, M, D), 16 or 32 bits
    decay, weight        a and C b of the recurrence, (P, M, N, D) float32
    mix                  weights of the bands (B, L, M, HEADS), 16 or 32 bits
    skip, lengths        (M, D) float32 and (B,) int64, or None
    grad_y               gradient of the mixed output (B, L, D)
    states, carries      states, and their gradients, at the chunks' boundaries, (P, B, chunks, M, N, D) float32
    length, span         L, and the steps of a chunk
    planes_apart         distance of the planes of states and carries, in elements
    AHEAD                steps that are loaded before they are computed, see `msssm.scan.triton.common`

Names inside: (h, k), (a, b), (v, w) and (g, k or q) are the real and imaginary parts of state, decay, weight and the
state's gradient, all (BLOCK_N, BLOCK_D); x, e, gs are u, mix and grad_y of one step. Tuples such as `xs` hold AHEAD
steps in registers, `next_xs` those after them.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator, assignment, var-annotated"
# Triton has no types, and its tuples grow.

import triton
import triton.language as tl

from msssm.scan.triton import common
from msssm.scan.triton.common import SIZES, place, whether


def block_of_states(states: int, is_complex: bool) -> int:
    """Number of states of one program; complex ones take two registers each."""
    return common.block_of_states(states, common.MOST_STATES // 2 if is_complex else common.MOST_STATES)


@triton.jit
def read(planes, at, apart, real, COMPLEX: tl.constexpr):
    """Loads real and imaginary part; the latter copies the former if there is none."""
    x = tl.load(planes + at, mask=real, other=0.0)
    y = x
    if COMPLEX:
        y = tl.load(planes + apart + at, mask=real, other=0.0)
    return x, y


@triton.jit
def write(planes, at, apart, x, y, real, COMPLEX: tl.constexpr):
    """Stores real and, if there is one, imaginary part."""
    tl.store(planes + at, x, mask=real)
    if COMPLEX:
        tl.store(planes + apart + at, y, mask=real)


@triton.jit
def multiply_add(a, b, x, y, p, q, COMPLEX: tl.constexpr):
    """Computes (a + ib) (x + iy) + (p + iq)."""
    if COMPLEX:
        first = a * x - b * y + p
        second = a * y + b * x + q
    else:
        first = a * x + p
        second = first
    return first, second


@triton.jit
def real_part(v, w, h, k, COMPLEX: tl.constexpr):
    """Computes Re sum_n (v + iw) (h + ik), (BLOCK_D,)."""
    terms = v * h
    if COMPLEX:
        terms -= w * k
    return tl.sum(terms, 0)


@triton.jit(do_not_specialize=[*SIZES, "planes_apart"])
def forward(u, decay, weight, mix, skip, lengths, states, scratch, y,
            length, span, chunks, planes_apart,
            BANDS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr, COMPLEX: tl.constexpr,
            TILE: tl.constexpr, AHEAD: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Advances the states of all bands through a chunk, and writes the mixed outputs.

    states: before each chunk when called, after it on return. y: (B, L, state blocks, D), to be added up over blocks;
    None in the first pass. scratch: (programs, TILE, BLOCK_D) float32, sums over the bands done so far.

    Programs: rows x chunks x blocks of states x blocks of channels. One program runs all bands, tile by tile, so that
    the mix needs no sum across programs.
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
    # Lanes past the last channel repeat it and write nothing, so that no load in the loops needs a mask.
    here = tl.minimum(d, D - 1)
    slot = scratch
    if y is not None:
        slot = scratch + tl.program_id(0).to(tl.int64) * (TILE * BLOCK_D) + lane
    for start in range(begin, end, TILE):
        steps = tl.minimum(end - start, TILE).to(tl.int32)
        # A step past the last one would change the state: steps that do not fill AHEAD run one by one.
        whole = steps // AHEAD * AHEAD
        for m in range(BANDS):
            # This band's state, decay and output weights, from the tile before or the chunk's start.
            state_at = ((row * chunks + chunk) * BANDS + m) * (N * D) + own
            h, k = read(states, state_at, planes_apart, real, COMPLEX)
            a, b = read(decay, m * N * D + own, BANDS * N * D, real, COMPLEX)
            v, w = read(weight, m * N * D + own, BANDS * N * D, real, COMPLEX)
            through = tl.zeros((BLOCK_D,), tl.float32)
            if skip is not None:
                through = tl.load(skip + m * D + d, mask=once, other=0.0)
            # Within a tile 32 bits hold every offset.
            at = (row * length + start) * BANDS + m
            u_at, mix_at = u + at * D + here, mix + at * HEADS + here * HEADS // D
            y_at = y
            if y is not None:
                y_at = y + ((row * length + start) * state_blocks + state_block) * D + d
            # The first AHEAD steps; the partial sum of a tile's first band is zero.
            xs, es, sums = (), (), ()
            for j in tl.static_range(AHEAD):
                later = tl.minimum(j, steps - 1)
                xs += (tl.load(u_at + later * (BANDS * D)),)
                if y is not None:
                    es += (tl.load(mix_at + later * (BANDS * HEADS)),)
                    sums += (tl.load(slot + later * BLOCK_D, mask=whether(0, m, BLOCK_D), other=0.0),)
            for i in range(0, whole, AHEAD):
                # Load step i + AHEAD + j, compute step i + j: recurrence, output, sum over bands.
                next_xs, next_es, next_sums = (), (), ()
                for j in tl.static_range(AHEAD):
                    later = tl.minimum(i + AHEAD + j, steps - 1)
                    next_xs += (tl.load(u_at + later * (BANDS * D)),)
                    if y is not None:
                        next_es += (tl.load(mix_at + later * (BANDS * HEADS)),)
                        next_sums += (tl.load(slot + later * BLOCK_D, mask=whether(0, m, BLOCK_D), other=0.0),)
                    x = xs[j].to(tl.float32)
                    h, k = multiply_add(a, b, h, k, x[None, :], 0.0, COMPLEX)
                    if y is not None:
                        out = sums[j] + es[j].to(tl.float32) * (real_part(v, w, h, k, COMPLEX) + through * x)
                        if m < BANDS - 1:
                            tl.store(slot + (i + j) * BLOCK_D, out)
                        else:
                            tl.store(y_at + (i + j) * (state_blocks * D), out, mask=d < D)
                xs, es, sums = next_xs, next_es, next_sums
            # The remaining steps, likewise, one by one.
            for i in range(whole, steps):
                x = tl.load(u_at + i * (BANDS * D)).to(tl.float32)
                h, k = multiply_add(a, b, h, k, x[None, :], 0.0, COMPLEX)
                if y is not None:
                    out = tl.load(slot + i * BLOCK_D, mask=whether(0, m, BLOCK_D), other=0.0)
                    e = tl.load(mix_at + i * (BANDS * HEADS)).to(tl.float32)
                    out += e * (real_part(v, w, h, k, COMPLEX) + through * x)
                    if m < BANDS - 1:
                        tl.store(slot + i * BLOCK_D, out)
                    else:
                        tl.store(y_at + i * (state_blocks * D), out, mask=d < D)
            write(states, state_at, planes_apart, h, k, real, COMPLEX)
        # The next tile reads states that other threads may have written.
        tl.debug_barrier()


@triton.jit
def take(g, k, v, w, grad, COMPLEX: tl.constexpr):
    """Adds the gradient of one output, times the conjugate weight, to the gradient (g, k) of the state."""
    g += v * grad[None, :]
    if COMPLEX:
        k -= w * grad[None, :]
    return g, k


@triton.jit(do_not_specialize=[*SIZES, "planes_apart"])
def reverse(decay, weight, mix, skip, lengths, grad_y, carries, grad_u,
            length, span, chunks, planes_apart,
            BANDS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr, COMPLEX: tl.constexpr,
            AHEAD: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Carries the gradient of the state back through a chunk, and writes the gradients of the inputs.

    carries: gradient of the state after each chunk when called, before it on return. grad_u: (B, L, M, state blocks,
    D), to be added up over blocks; None in the first pass.

    Programs: rows x chunks x bands x blocks of states x blocks of channels.
    """
    row, chunk, m, state_block, channel_block, begin, end = place(
        lengths, length, span, chunks, BANDS, D, N, BLOCK_N, BLOCK_D
    )
    state_blocks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    d = channel_block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = state_block * BLOCK_N + tl.arange(0, BLOCK_N)
    real = (n < N)[:, None] & (d < D)[None, :]
    once = d + state_block * D < D
    here = tl.minimum(d, D - 1)
    own = n[:, None] * D + tl.multiple_of(d, 1)[None, :]
    carry_at = ((row * chunks + chunk) * BANDS + m) * (N * D) + own
    g, k = read(carries, carry_at, planes_apart, real, COMPLEX)
    a, b = read(decay, m * N * D + own, BANDS * N * D, real, COMPLEX)
    v, w = read(weight, m * N * D + own, BANDS * N * D, real, COMPLEX)
    through = tl.zeros((BLOCK_D,), tl.float32)
    if skip is not None:
        through = tl.load(skip + m * D + d, mask=once, other=0.0)
    steps = tl.maximum(end - begin, 0)
    at = (row * length + begin) * BANDS + m
    mix_at, y_at = mix + at * HEADS + here * HEADS // D, grad_y + (row * length + begin) * D + here
    u_at = grad_u
    if grad_u is not None:
        u_at = grad_u + (at * state_blocks + state_block) * D + d
    # A step before the first one would change the gradient: steps that do not fill AHEAD run one by one.
    whole = steps // AHEAD * AHEAD
    # The last AHEAD steps, the last one first.
    es, gs = (), ()
    for j in tl.static_range(AHEAD):
        ok, later = whether(j, steps, BLOCK_D), tl.maximum(steps - 1 - j, 0)
        es += (tl.load(mix_at + later * (BANDS * HEADS), mask=ok, other=0.0),)
        gs += (tl.load(y_at + later * D, mask=ok, other=0.0),)
    for back in range(0, whole, AHEAD):
        # Load an earlier step; take in the output's gradient, store the input's, go one step back.
        next_es, next_gs = (), ()
        for j in tl.static_range(AHEAD):
            later = tl.maximum(steps - 1 - AHEAD - back - j, 0)
            next_es += (tl.load(mix_at + later * (BANDS * HEADS)),)
            next_gs += (tl.load(y_at + later * D),)
            grad = es[j].to(tl.float32) * gs[j].to(tl.float32)
            g, k = take(g, k, v, w, grad, COMPLEX)
            if grad_u is not None:
                at_u = u_at + (steps - 1 - back - j) * (BANDS * state_blocks * D)
                tl.store(at_u, tl.sum(g, 0) + through * grad, mask=d < D)
            g, k = multiply_add(a, -b, g, k, 0.0, 0.0, COMPLEX)
        es, gs = next_es, next_gs
    for back in range(whole, steps):
        i = steps - 1 - back
        grad = tl.load(mix_at + i * (BANDS * HEADS)).to(tl.float32) * tl.load(y_at + i * D).to(tl.float32)
        g, k = take(g, k, v, w, grad, COMPLEX)
        if grad_u is not None:
            tl.store(u_at + i * (BANDS * state_blocks * D), tl.sum(g, 0) + through * grad, mask=d < D)
        g, k = multiply_add(a, -b, g, k, 0.0, 0.0, COMPLEX)
    write(carries, carry_at, planes_apart, g, k, real, COMPLEX)


@triton.jit(do_not_specialize=[*SIZES, "planes_apart"])
def sums(u, decay, weight, mix, skip, lengths, grad_y, states, carries, grad_decay, grad_weight, grad_mix, grad_skip,
         length, span, chunks, planes_apart,
         BANDS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr, COMPLEX: tl.constexpr,
         AHEAD: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Writes the gradients of the parameters, from the states before and the gradients after each chunk.

    They are partial sums: grad_decay, grad_weight (P, B, chunks, M, N, D); grad_skip (B, chunks, M, D); grad_mix
    (B, L, M, state blocks, D), or (B, L, M, state blocks, channel blocks) with one head.

    Programs: rows x chunks x bands x blocks of states x blocks of channels.
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
    here = tl.minimum(d, D - 1)
    own = n[:, None] * D + tl.multiple_of(d, 1)[None, :]
    place_of = (row * chunks + chunk) * BANDS + m
    state_at = place_of * (N * D) + own
    h, k = read(states, state_at, planes_apart, real, COMPLEX)
    a, b = read(decay, m * N * D + own, BANDS * N * D, real, COMPLEX)
    v, w = read(weight, m * N * D + own, BANDS * N * D, real, COMPLEX)
    through = tl.zeros((BLOCK_D,), tl.float32)
    if skip is not None:
        through = tl.load(skip + m * D + d, mask=once, other=0.0)
    # Sensitivities s_t, and the sums over time of g_t h_t, g_t s_t and g_t u_t.
    zero = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    slope, imaginary_slope = zero, zero
    sum_h, sum_k, sum_slope, sum_imaginary = zero, zero, zero, zero
    sum_skip = tl.zeros((BLOCK_D,), tl.float32)
    steps = tl.maximum(end - begin, 0)
    at = (row * length + begin) * BANDS + m
    u_at, mix_at = u + at * D + here, mix + at * HEADS + here * HEADS // D
    y_at = grad_y + (row * length + begin) * D + here
    xs, es, gs = (), (), ()
    for j in tl.static_range(AHEAD):
        ok, later = whether(j, steps, BLOCK_D), tl.minimum(j, tl.maximum(steps - 1, 0))
        xs += (tl.load(u_at + later * (BANDS * D), mask=ok, other=0.0),)
        es += (tl.load(mix_at + later * (BANDS * HEADS), mask=ok, other=0.0),)
        gs += (tl.load(y_at + later * D, mask=ok, other=0.0),)
    for i in range(0, steps, AHEAD):
        # Load step i + AHEAD + j; advance sensitivities and states of step i + j, and add to the sums.
        next_xs, next_es, next_gs = (), (), ()
        for j in tl.static_range(AHEAD):
            later = tl.minimum(i + AHEAD + j, steps - 1)
            next_xs += (tl.load(u_at + later * (BANDS * D)),)
            next_es += (tl.load(mix_at + later * (BANDS * HEADS)),)
            next_gs += (tl.load(y_at + later * D),)
            if i + j < steps:
                x = xs[j].to(tl.float32)
                grad_mixed = tl.where(d < D, gs[j].to(tl.float32), 0.0)
                grad = es[j].to(tl.float32) * grad_mixed
                slope, imaginary_slope = multiply_add(a, b, slope, imaginary_slope, h, k, COMPLEX)
                h, k = multiply_add(a, b, h, k, x[None, :], 0.0, COMPLEX)
                sum_h += grad[None, :] * h
                sum_slope += grad[None, :] * slope
                if COMPLEX:
                    sum_k += grad[None, :] * k
                    sum_imaginary += grad[None, :] * imaginary_slope
                product = grad_mixed * (real_part(v, w, h, k, COMPLEX) + through * x)
                part = ((at + (i + j) * BANDS) * state_blocks + state_block).to(tl.int64)
                if HEADS == 1:
                    tl.store(grad_mix + part * channel_blocks + channel_block, tl.sum(product, 0))
                else:
                    tl.store(grad_mix + part * D + d, product, mask=d < D)
                sum_skip += grad * x
        xs, es, gs = next_xs, next_es, next_gs
    # The gradient of decay has a part through the outputs, and one through the chunk's last state.
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
