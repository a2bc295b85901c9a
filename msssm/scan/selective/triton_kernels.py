"""Kernels of the selective scan. Nothing of size (B, L, M, D, N) is written except the slots described below.

A program handles one row, one chunk, one band, BLOCK_N states and BLOCK_D channels; programs are numbered as in
`triton_common.place`. The values of step t are loaded while an earlier step is computed, and carried through the loop:
a multiprocessor issues in order, and a value used right after its load would cost the load's whole latency in every
step. benchmarks.cubins reads the distance from the compiled code.

Forward: the outputs of bands and blocks of states are partial sums, added up afterwards in a fixed order. The states at
the tiles' boundaries are kept as checkpoints.

Backward: for each tile, last to first, a sweep runs forward from the checkpoint and stores the state before each block
of BLOCK steps in a slot; then the program walks back block by block, and recomputes the states of a block in registers.
The slots take 4 / BLOCK bytes per state, in the L2 cache, or in memory if they outgrow it. There is one partial sum
over channels per block of channels, over time per row and chunk, and over states per block of states; all are added up
afterwards in a fixed order.

exp is exp2 with log2(e) folded into A. Under zero-order hold, the gain takes about ten more operations, so that the FMA
pipes are the limit and not the exponential unit, which therefore computes all exponentials.

Parameters, unless a kernel says otherwise:

    u, delta             inputs, and step sizes before bias and softplus, (B, L, M, D), 16 or 32 bits
    A                    (M, N, D) float32
    B, C                 (B, L, M, N), 16 or 32 bits
    mix                  weights of the bands (B, L, M, HEADS), 16 or 32 bits
    skip, bias           (M, D) float32, or None; with a bias, the step size is softplus(delta + bias)
    lengths              (B,) int64, or None
    grad_y               gradient of the mixed output (B, L, D)
    states, carries      states, and their gradients, at the chunks' boundaries, (B, chunks, M, N, D) float32
    checkpoints          states before each tile of TILE steps, (B, tiles, M, N, D) float32
    length, span         L, and the steps of a chunk
    AHEAD                steps that are loaded before they are computed

Names inside: `h` the states, `rate` A log2(e) and `inverse` 1 / rate, (BLOCK_N, BLOCK_D); `weight` the skip weights,
(BLOCK_D,); x, step, b, c, e, grad are u, Delta, B, C, mix and the gradient of one step. Tuples such as `xs` hold AHEAD
steps in registers, `next_xs` those after them.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator, assignment, var-annotated"
# Triton has no types, and its tuples grow.

import triton
import triton.language as tl

from msssm.scan.selective.triton_common import SIZES, place, whether
from msssm.scan.selective.triton_step import (
    LN2,
    LOG2E,
    advance,
    below,
    clamp,
    decay_and_gain,
    head_of,
    load_some,
    load_weights,
    softplus,
    softplus_and_slope,
    widen,
)

# Steps that the backward's sweep loads ahead.
SWEEP: tl.constexpr = tl.constexpr(4)


@triton.jit(do_not_specialize=SIZES)
def forward(u, delta, A, B, C, mix, skip, bias, lengths, states, totals, checkpoints, y,
            length, span, chunks,
            BANDS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr, ZOH: tl.constexpr,
            TILE: tl.constexpr, AHEAD: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Advances the states through a chunk, and writes the outputs.

    states: before each chunk when called, after it on return. y: (B, L, M, state blocks, D), to be added up over bands
    and blocks; None in the first pass, which instead writes totals (B, chunks, M, D), the sums of the step sizes: exp
    (A total) is the decay of the whole chunk. checkpoints: written if not None.
    """
    row, chunk, m, state_block, channel_block, begin, end = place(
        lengths, length, span, chunks, BANDS, D, N, BLOCK_N, BLOCK_D
    )
    state_blocks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    d = channel_block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = state_block * BLOCK_N + tl.arange(0, BLOCK_N)
    real = (n < N)[:, None] & (d < D)[None, :]
    once = d + state_block * D < D
    # Lanes past the last channel repeat it and write nothing, so that no load in the loop needs a mask.
    here = tl.minimum(d, D - 1)
    # The hint keeps one channel per lane in loads of states, the layout in which lanes exchange nothing in the loop.
    own = n[:, None] * D + tl.multiple_of(d, 1)[None, :]
    # State, rates, skip weights and bias of this program.
    state_at = states + ((row * chunks + chunk) * BANDS + m) * (N * D) + own
    h = tl.load(state_at, mask=real, other=0.0)
    rate = tl.load(A + m * N * D + own, mask=real, other=-1.0) * LOG2E
    inverse = 1.0 / rate
    weight = tl.zeros((BLOCK_D,), tl.float32)
    if skip is not None:
        weight = tl.load(skip + m * D + d, mask=once, other=0.0)
    band_bias = bias
    if bias is not None:
        band_bias = tl.load(bias + m * D + here)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(begin, end, TILE):
        if checkpoints is not None:
            tiles = (length + TILE - 1) // TILE
            kept = (row * tiles + start // TILE) * BANDS + m
            tl.store(checkpoints + kept * (N * D) + own, h, mask=real)
        # Pointers to the tile's first step; within a tile, 32 bits hold every offset.
        steps = tl.minimum(end - start, TILE).to(tl.int32)
        at = (row * length + start) * BANDS + m
        u_at, delta_at, mix_at = u + at * D + here, delta + at * D + here, mix + at * HEADS + head_of(here, D, HEADS)
        B_at, C_at = B + at * N, C + at * N
        y_at = y
        if y is not None:
            y_at = y + (at * state_blocks + state_block) * D + d
        # The first AHEAD steps.
        xs, zs, bs, cs, es = (), (), (), (), ()
        for j in tl.static_range(AHEAD):
            k = tl.minimum(j, steps - 1) * BANDS
            xs += (tl.load(u_at + k * D),)
            zs += (tl.load(delta_at + k * D),)
            bs += (load_weights(B_at + k * N, state_block, N, BLOCK_N),)
            if y is not None:
                cs += (load_weights(C_at + k * N, state_block, N, BLOCK_N),)
                es += (tl.load(mix_at + k * HEADS),)
        for i in range(0, steps, AHEAD):
            # Load step i + AHEAD + j; compute step i + j: step size, recurrence, output.
            next_xs, next_zs, next_bs, next_cs, next_es = (), (), (), (), ()
            for j in tl.static_range(AHEAD):
                k = tl.minimum(i + AHEAD + j, steps - 1) * BANDS
                next_xs += (tl.load(u_at + k * D),)
                next_zs += (tl.load(delta_at + k * D),)
                next_bs += (load_weights(B_at + k * N, state_block, N, BLOCK_N),)
                if y is not None:
                    next_cs += (load_weights(C_at + k * N, state_block, N, BLOCK_N),)
                    next_es += (tl.load(mix_at + k * HEADS),)
                x = xs[j].to(tl.float32)
                step = zs[j].to(tl.float32)
                if bias is not None:
                    step, _e = softplus(step + band_bias)
                    step = clamp(step)
                # Past the tile's last step, a step size of 0 keeps the state.
                live = whether(i + j, steps, BLOCK_D)
                step = tl.where(live, step, 0.0)
                h = advance(h, x, step, widen(bs[j], B, N), rate, inverse, ZOH)
                if y is None:
                    total += step
                else:
                    c = widen(cs[j], C, N)
                    out = es[j].to(tl.float32) * (tl.sum(h * c[:, None], 0) + weight * x)
                    tl.store(y_at + (i + j) * (BANDS * state_blocks * D), out, mask=(d < D) & live)
            xs, zs, bs, cs, es = next_xs, next_zs, next_bs, next_cs, next_es
    tl.store(state_at, h, mask=real)
    if y is None:
        total_at = totals + ((row * chunks + chunk) * BANDS + m) * D + d
        tl.store(total_at, total, mask=once)


@triton.jit(do_not_specialize=SIZES)
def carry_back(delta, A, C, mix, bias, lengths, grad_y, carries, totals, length, span, chunks,
               BANDS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr, TILE: tl.constexpr,
               AHEAD: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Runs the first pass of the backward: the part of each chunk's outputs in the gradient of the state before it.

    Writes carries (B, chunks, M, N, D) and totals (B, chunks, M, D), the sums of the step sizes.
    """
    row, chunk, m, state_block, channel_block, begin, end = place(
        lengths, length, span, chunks, BANDS, D, N, BLOCK_N, BLOCK_D
    )
    d = channel_block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = state_block * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = below(d, D, BLOCK_D)
    real = below(n, N, BLOCK_N)[:, None] & channel[None, :]
    here = tl.minimum(d, D - 1)
    own = n[:, None] * D + tl.multiple_of(d, 1)[None, :]
    rate = tl.load(A + m * N * D + own, mask=real, other=-1.0) * LOG2E
    band_bias = bias
    if bias is not None:
        band_bias = tl.load(bias + m * D + here)
    carry = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_D,), tl.float32)
    tiles = tl.maximum(end - begin + TILE - 1, 0) // TILE
    for later_tiles in range(tiles):
        start = begin + (tiles - 1 - later_tiles) * TILE
        steps = tl.minimum(end - start, TILE).to(tl.int32)
        at = (row * length + start) * BANDS + m
        delta_at, mix_at = delta + at * D + here, mix + at * HEADS + head_of(here, D, HEADS)
        C_at, grad_at = C + at * N, grad_y + (row * length + start) * D + here
        # The tile's last AHEAD steps, the last one first.
        zs, cs, es, gs = (), (), (), ()
        for j in tl.static_range(AHEAD):
            k = tl.maximum(steps - 1 - j, 0)
            zs += (tl.load(delta_at + k * (BANDS * D)),)
            cs += (load_weights(C_at + k * (BANDS * N), state_block, N, BLOCK_N),)
            es += (tl.load(mix_at + k * (BANDS * HEADS)),)
            gs += (tl.load(grad_at + k * D),)
        for back in range(0, steps, AHEAD):
            # Load an earlier step; take in the output's gradient of this one, and go one step back.
            next_zs, next_cs, next_es, next_gs = (), (), (), ()
            for j in tl.static_range(AHEAD):
                k = tl.maximum(steps - 1 - back - AHEAD - j, 0)
                next_zs += (tl.load(delta_at + k * (BANDS * D)),)
                next_cs += (load_weights(C_at + k * (BANDS * N), state_block, N, BLOCK_N),)
                next_es += (tl.load(mix_at + k * (BANDS * HEADS)),)
                next_gs += (tl.load(grad_at + k * D),)
                step = zs[j].to(tl.float32)
                if bias is not None:
                    step, _e = softplus(step + band_bias)
                    step = clamp(step)
                # Before the tile's first step, a step size of 0 keeps the gradient.
                live = whether(back + j, steps, BLOCK_D)
                step = tl.where(live, step, 0.0)
                grad = tl.where(channel & live, es[j].to(tl.float32) * gs[j].to(tl.float32), 0.0)
                c = widen(cs[j], C, N)
                carry = tl.exp2(step[None, :] * rate) * (carry + c[:, None] * grad[None, :])
                total += step
            zs, cs, es, gs = next_zs, next_cs, next_es, next_gs
    place_of = (row * chunks + chunk) * BANDS + m
    tl.store(carries + place_of * (N * D) + own, carry, mask=real)
    once = d + state_block * D < D
    tl.store(totals + place_of * D + d, total, mask=once)


@triton.jit(do_not_specialize=SIZES)
def backward(u, delta, A, B, C, mix, skip, bias, lengths, checkpoints, grad_y, carries, scratch,
             grad_u, grad_delta, grad_A, grad_B, grad_C, grad_mix, grad_skip, grad_bias,
             length, span, chunks,
             BANDS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr, ZOH: tl.constexpr,
             TILE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Carries the gradient of the state back through a chunk, and writes the gradients of all operands.

    carries: gradient of the state after each chunk when called, before it on return. scratch: the slots, (programs,
    TILE / BLOCK, BLOCK_N, BLOCK_D) float32.

    The gradients are partial sums: grad_u, grad_delta (B, L, M, state blocks, D);
    grad_B, grad_C (B, L, M, channel blocks, N); grad_mix (B, L, M, state blocks, D), or (B, L, M, state blocks,
    channel blocks) with one head; grad_A (B, chunks, M, N, D); grad_skip (B, chunks, M, D);
    grad_bias (B, chunks, M, state blocks, D).
    """
    row, chunk, m, state_block, channel_block, begin, end = place(
        lengths, length, span, chunks, BANDS, D, N, BLOCK_N, BLOCK_D
    )
    channel_blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    state_blocks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    d = channel_block * BLOCK_D + tl.arange(0, BLOCK_D)
    here = tl.minimum(d, D - 1)
    n = state_block * BLOCK_N + tl.arange(0, BLOCK_N)
    channel, state = below(d, D, BLOCK_D), below(n, N, BLOCK_N)
    real = state[:, None] & channel[None, :]
    once = d + state_block * D < D
    own = n[:, None] * D + d[None, :]
    rate = tl.load(A + m * N * D + own, mask=real, other=-1.0) * LOG2E
    inverse = 1.0 / rate
    weight = tl.zeros((BLOCK_D,), tl.float32)
    if skip is not None:
        weight = tl.load(skip + m * D + d, mask=once, other=0.0)
    band_bias = bias
    if bias is not None:
        band_bias = tl.load(bias + m * D + here)
    place_of = (row * chunks + chunk) * BANDS + m
    carry = tl.load(carries + place_of * (N * D) + own, mask=real, other=0.0)
    # Sums over time, in registers.
    sum_A = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    sum_skip = tl.zeros((BLOCK_D,), tl.float32)
    sum_bias = tl.zeros((BLOCK_D,), tl.float32)
    states_at: tl.constexpr = BLOCK_N * BLOCK_D
    slots = scratch + tl.program_id(0).to(tl.int64) * (TILE // BLOCK * states_at)
    slots += tl.arange(0, BLOCK_N)[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    all_tiles = (length + TILE - 1) // TILE
    tiles = tl.maximum(end - begin + TILE - 1, 0) // TILE
    start = begin + tiles * TILE
    for _ in range(tiles):
        start -= TILE
        # Pointers to the tile's first step; within a tile, 32 bits hold every offset.
        steps = tl.minimum(end - start, TILE).to(tl.int32)
        at = (row * length + start) * BANDS + m
        u_at, delta_at, mix_at = u + at * D + here, delta + at * D + here, mix + at * HEADS + head_of(here, D, HEADS)
        B_at, C_at = B + at * N + n, C + at * N + n
        grad_at = grad_y + (row * length + start) * D + d
        part = (at * state_blocks + state_block) * D + d
        sums = (at * channel_blocks + channel_block) * N + n
        kept = (row * all_tiles + start // TILE) * BANDS + m
        h = tl.load(checkpoints + kept * (N * D) + own, mask=real, other=0.0)
        # Sweep forward: store the state before each block of steps in its slot.
        xs, zs, bs = (), (), ()
        for j in tl.static_range(SWEEP):
            k = tl.minimum(j, steps - 1) * BANDS
            xs += (tl.load(u_at + k * D),)
            zs += (tl.load(delta_at + k * D),)
            bs += (load_some(B_at + k * N, n, N, BLOCK_N),)
        for i in range(0, steps, SWEEP):
            next_xs, next_zs, next_bs = (), (), ()
            for j in tl.static_range(SWEEP):
                k = tl.minimum(i + SWEEP + j, steps - 1) * BANDS
                next_xs += (tl.load(u_at + k * D),)
                next_zs += (tl.load(delta_at + k * D),)
                next_bs += (load_some(B_at + k * N, n, N, BLOCK_N),)
            for j in tl.static_range(SWEEP):
                if j % BLOCK == 0:
                    tl.store(slots + (i + j) // BLOCK * states_at, h)
                step = zs[j].to(tl.float32)
                if bias is not None:
                    step, _e = softplus(step + band_bias)
                    step = clamp(step)
                step = tl.where(whether(i + j, steps, BLOCK_D), step, 0.0)
                h = advance(h, xs[j].to(tl.float32), step, bs[j].to(tl.float32), rate, inverse, ZOH)
            xs, zs, bs = next_xs, next_zs, next_bs
        tl.debug_barrier()
        # Walk back: recompute the states of a block from its slot. First the tile's last block of inputs.
        blocks = (steps + BLOCK - 1) // BLOCK
        xs, zs, bs, cs, es, gs = (), (), (), (), (), ()
        for j in tl.static_range(BLOCK):
            k = tl.minimum((blocks - 1) * BLOCK + j, steps - 1)
            xs += (tl.load(u_at + k * (BANDS * D)),)
            zs += (tl.load(delta_at + k * (BANDS * D)),)
            bs += (load_some(B_at + k * (BANDS * N), n, N, BLOCK_N),)
            cs += (load_some(C_at + k * (BANDS * N), n, N, BLOCK_N),)
            es += (tl.load(mix_at + k * (BANDS * HEADS)),)
            gs += (load_some(grad_at + k * D, d, D, BLOCK_D),)
        for back in range(blocks):
            # Load the block before this one, while this one is computed.
            i = (blocks - 1 - back) * BLOCK
            before = (tl.load(slots + i // BLOCK * states_at),)
            next_xs, next_zs, next_bs, next_cs, next_es, next_gs = (), (), (), (), (), ()
            k = tl.maximum(i - BLOCK, 0)
            u_k, delta_k, mix_k = u_at + k * (BANDS * D), delta_at + k * (BANDS * D), mix_at + k * (BANDS * HEADS)
            B_k, C_k, grad_k = B_at + k * (BANDS * N), C_at + k * (BANDS * N), grad_at + k * D
            more, more_states = whether(0, i, BLOCK_D), whether(0, i, BLOCK_N)
            for j in tl.static_range(BLOCK):
                next_xs += (tl.load(u_k + j * (BANDS * D), mask=more),)
                next_zs += (tl.load(delta_k + j * (BANDS * D), mask=more),)
                next_bs += (tl.load(B_k + j * (BANDS * N), mask=state & more_states, other=0.0),)
                next_cs += (tl.load(C_k + j * (BANDS * N), mask=state & more_states, other=0.0),)
                next_es += (tl.load(mix_k + j * (BANDS * HEADS), mask=i > 0 if HEADS == 1 else more),)
                next_gs += (tl.load(grad_k + j * D, mask=channel & more, other=0.0),)
            # Step sizes, their derivatives, and the state before each step of the block.
            sizes, slopes = (), ()
            for j in tl.static_range(BLOCK):
                step = zs[j].to(tl.float32)
                slope = step
                if bias is not None:
                    step, slope = softplus_and_slope(step + band_bias)
                step = tl.where(whether(i + j, steps, BLOCK_D), step, 0.0)
                sizes += (step,)
                slopes += (slope,)
                if j < BLOCK - 1:
                    x, b = xs[j].to(tl.float32), bs[j].to(tl.float32)
                    before += (advance(before[j], x, step, b, rate, inverse, ZOH),)
            part_i, sums_i = part + i * (BANDS * state_blocks * D), sums + i * (BANDS * channel_blocks * N)
            for j in tl.static_range(BLOCK - 1, -1, -1):
                live, live_state = whether(i + j, steps, BLOCK_D), whether(i + j, steps, BLOCK_N)
                step = sizes[j]
                x, b, c = xs[j].to(tl.float32), bs[j].to(tl.float32), cs[j].to(tl.float32)
                grad_mixed = tl.where(live, gs[j].to(tl.float32), 0.0)
                e = es[j].to(tl.float32)
                grad = e * grad_mixed
                part_at, sums_at = part_i + j * (BANDS * state_blocks * D), sums_i + j * (BANDS * channel_blocks * N)
                # h is still the state after the step.
                if HEADS == 1:
                    # One weight for all channels: the sum over them without it serves both C and mix.
                    by_state = tl.sum(h * grad_mixed[None, :], 1)
                    tl.store(grad_C + sums_at, by_state * e, mask=state & live_state)
                    mixed_at = ((at + (i + j) * BANDS) * state_blocks + state_block) * channel_blocks + channel_block
                    mixed = tl.sum(by_state * c, 0) + tl.sum(weight * x * grad_mixed, 0)
                    tl.store(grad_mix + mixed_at, mixed, mask=i + j < steps)
                else:
                    by_state = tl.sum(h * grad[None, :], 1)
                    tl.store(grad_C + sums_at, by_state, mask=state & live_state)
                    product = grad_mixed * (tl.sum(h * c[:, None], 0) + weight * x)
                    tl.store(grad_mix + part_at, product, mask=channel & live)
                # One step back: the gradient of the state, through the output and through the next state.
                h = before[j]
                decay, gain = decay_and_gain(step, rate, inverse, ZOH)
                grad_h = carry + c[:, None] * grad[None, :]
                carry = decay * grad_h
                if ZOH:
                    # dh/dstep = ln(2) decay (B v + rate h_{t-1});
                    # dh/drate has, besides step / rate of it, -gain B v / rate.
                    v = x * LOG2E
                    drive = b[:, None] * v[None, :]
                    grad_drive = grad_h * gain
                    along_step = carry * (drive + rate * h)
                    sum_A += along_step * (step * LN2)[None, :] - grad_drive * drive
                    grad_step = tl.sum(along_step, 0) * LN2
                    grad_x = tl.sum(grad_drive * b[:, None], 0) * LOG2E
                    grad_b = tl.sum(grad_drive * v[None, :], 1)
                else:
                    along_step = carry * h
                    sum_A += along_step * step[None, :]
                    along = tl.sum(grad_h * b[:, None], 0)
                    grad_step = tl.sum(along_step * rate, 0) * LN2 + along * x
                    grad_x = along * step
                    grad_b = tl.sum(grad_h * (x * step)[None, :], 1)
                if bias is not None:
                    grad_step = tl.where(live, grad_step * slopes[j], 0.0)
                    sum_bias += grad_step
                tl.store(grad_u + part_at, grad_x + weight * grad, mask=channel & live)
                tl.store(grad_delta + part_at, grad_step, mask=channel & live)
                tl.store(grad_B + sums_at, grad_b, mask=state & live_state)
                sum_skip += grad * x
            xs, zs, bs, cs, es, gs = next_xs, next_zs, next_bs, next_cs, next_es, next_gs
        # The next tile overwrites the slots.
        tl.debug_barrier()
    # Recomputed from what the loop leaves: kept through the loop, these addresses would spill.
    place_of = (row * chunks + start // span) * BANDS + m
    tl.store(carries + place_of * (N * D) + own, carry, mask=real)
    if ZOH:
        sum_A *= inverse * LOG2E
    tl.store(grad_A + place_of * (N * D) + own, sum_A, mask=real)
    if skip is not None:
        tl.store(grad_skip + place_of * D + d, sum_skip, mask=once)
    if bias is not None:
        tl.store(grad_bias + (place_of * state_blocks + state_block) * D + d, sum_bias, mask=channel)
