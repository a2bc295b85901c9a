"""Kernels of the selective scan. Nothing of size (B, L, M, D, N) is written.

Forward: a program holds one row, one chunk and BLOCK_D channels, and goes through all bands of a tile of steps before
the next tile, so that the mixed sum over bands stays in a cache-resident scratch of the program's own. At the tiles'
boundaries the states are kept as checkpoints.

Backward: a program holds one band. For each tile, last to first, it recomputes the states from the checkpoint into a
scratch of its own (4 bytes a state: for the L2 cache), then walks back through them. Sums over channels leave as one
partial sum per block of channels, sums over time per row and chunk, sums over states per block of states; all are added
up afterwards in a fixed order.

exp is exp2 with log2(e) folded into A. Under zero-order hold about ten operations beside it go to the gain, and the FMA
pipes bind, not the exponential unit: so the exponentials stay there.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
# Triton has no types.

import triton
import triton.language as tl

from msssm.scan.gpu.common import SIZES, place
from msssm.scan.step_size import MAX_DELTA, MIN_DELTA

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
LOWEST: tl.constexpr = tl.constexpr(MIN_DELTA)
HIGHEST: tl.constexpr = tl.constexpr(MAX_DELTA)


@triton.jit
def decay_and_gain(step, rate, inverse, ZOH: tl.constexpr):
    """2^(step rate) and (2^(step rate) - 1) / rate (1 under Euler), where rate = A log2(e) and inverse = 1 / rate.

    Zero-order hold's own gain, expm1(step A) / A, is log2(e) times that: the factor goes to the input.
    """
    x = step[None, :] * rate
    decay = tl.exp2(x)
    if ZOH:
        # (2^x - 1) / x on [-3/4, 0], relative error 2e-7; below, 2^x - 1 loses at most two bits.
        p = 0.0010745241306722164 * x + 0.009452960453927517
        p = p * x + 0.05545998737215996
        p = p * x + 0.24022231996059418
        p = p * x + 0.6931471228599548
        gain = tl.where(x > -0.75, p * x, decay - 1.0) * inverse
    else:
        gain = 1.0
    return decay, gain


@triton.jit
def step_size(z):
    """clamp(softplus(z), MIN_DELTA, MAX_DELTA) and its derivative; exact to float32 for every z."""
    e = tl.exp2(-tl.abs(z) * LOG2E)
    # log(1 + e) = 2 artanh(e / (2 + e)), whose argument is at most 1/3.
    r = e / (2.0 + e)
    q = r * r
    series = 1 / 13 + q * (1 / 15)
    series = 1 / 11 + q * series
    series = 1 / 9 + q * series
    series = 1 / 7 + q * series
    series = 1 / 5 + q * series
    series = 1 / 3 + q * series
    softplus = tl.maximum(z, 0.0) + 2.0 * r * (1.0 + q * series)
    slope = tl.where(z >= 0.0, 1.0, e) / (1.0 + e)
    within = (softplus >= LOWEST) & (softplus <= HIGHEST)
    return tl.minimum(tl.maximum(softplus, LOWEST), HIGHEST), tl.where(within, slope, 0.0)


@triton.jit
def read_step(u, delta, B, bias, at, d, n, D: tl.constexpr, N: tl.constexpr):
    """u, step, its derivative by delta, and B, of one band and time; zeros where there is no channel or state."""
    ok = d < D
    x = tl.load(u + at * D + d, mask=ok, other=0.0).to(tl.float32)
    step = tl.load(delta + at * D + d, mask=ok, other=0.0).to(tl.float32)
    slope = step
    if bias is not None:
        step, slope = step_size(step + bias)
        step = tl.where(ok, step, 0.0)
    b = tl.load(B + at * N + n, mask=n < N, other=0.0).to(tl.float32)
    return x, step, slope, b


@triton.jit
def advance(h, x, step, b, rate, inverse, ZOH: tl.constexpr):
    """h_t of h_{t-1}."""
    decay, gain = decay_and_gain(step, rate, inverse, ZOH)
    if ZOH:
        h = decay * h + gain * (b[:, None] * (x * LOG2E)[None, :])
    else:
        h = decay * h + b[:, None] * (x * step)[None, :]
    return h


@triton.jit(do_not_specialize=SIZES)
def forward(u, delta, A, B, C, mix, skip, bias, lengths, states, totals, checkpoints, scratch, y,
            length, span, chunks,
            BANDS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr, ZOH: tl.constexpr,
            TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """states (B, chunks, M, N, D): before each chunk when called, after it on return.

    Writes y (B, L, state blocks, D) and, where given, checkpoints (B, tiles, M, N, D). Without y it is the first
    pass, which needs no tiles and gives totals (B, chunks, M, D), the sums of the step sizes.
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
    # The hint keeps loads of states at one channel a lane, the layout in which the loop needs no exchange.
    own = n[:, None] * D + tl.multiple_of(d, 1)[None, :]
    tile, slot = span, scratch
    if y is not None:
        tile = TILE
        slot = scratch + tl.program_id(0).to(tl.int64) * (TILE * BLOCK_D) + lane
    for start in range(begin, end, tile):
        stop = tl.minimum(start + tile, end)
        for m in range(BANDS):
            state_at = states + ((row * chunks + chunk) * BANDS + m) * (N * D) + own
            h = tl.load(state_at, mask=real, other=0.0)
            if checkpoints is not None:
                tiles = (length + TILE - 1) // TILE
                kept = (row * tiles + start // TILE) * BANDS + m
                tl.store(checkpoints + kept * (N * D) + own, h, mask=real)
            a = tl.load(A + m * N * D + own, mask=real, other=-1.0)
            rate = a * LOG2E
            inverse = 1.0 / rate
            weight = tl.zeros((BLOCK_D,), tl.float32)
            if skip is not None:
                weight = tl.load(skip + m * D + d, mask=once, other=0.0)
            band_bias = bias
            if bias is not None:
                band_bias = tl.load(bias + m * D + d, mask=d < D, other=0.0)
            total = tl.zeros((BLOCK_D,), tl.float32)
            for t in range(start, stop):
                at = (row * length + t) * BANDS + m
                x, step, _slope, b = read_step(u, delta, B, band_bias, at, d, n, D, N)
                h = advance(h, x, step, b, rate, inverse, ZOH)
                if y is None:
                    total += step
                else:
                    c = tl.load(C + at * N + n, mask=n < N, other=0.0).to(tl.float32)
                    e = tl.load(mix + at * HEADS + d * HEADS // D, mask=d < D, other=0.0).to(tl.float32)
                    out = e * (tl.sum(h * c[:, None], 0) + weight * x)
                    y_at = y + ((row * length + t) * state_blocks + state_block) * D + d
                    if m > 0:
                        out += tl.load(slot + (t - start) * BLOCK_D)
                    if m < BANDS - 1:
                        tl.store(slot + (t - start) * BLOCK_D, out)
                    else:
                        tl.store(y_at, out, mask=d < D)
            tl.store(state_at, h, mask=real)
            if y is None:
                total_at = totals + ((row * chunks + chunk) * BANDS + m) * D + d
                tl.store(total_at, total, mask=once)
        # The next tile reads states that other threads may have written.
        tl.debug_barrier()


@triton.jit(do_not_specialize=SIZES)
def carry_back(delta, A, C, mix, bias, lengths, grad_y, carries, totals, length, span, chunks,
               BANDS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr,
               BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """First pass of the backward: what each chunk's outputs give to the gradient of the state before the chunk.

    Writes carries (B, chunks, M, N, D) and totals (B, chunks, M, D), the sums of the step sizes.
    """
    row, chunk, m, state_block, channel_block, begin, end = place(
        lengths, length, span, chunks, BANDS, D, N, BLOCK_N, BLOCK_D
    )
    d = channel_block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = state_block * BLOCK_N + tl.arange(0, BLOCK_N)
    real = (n < N)[:, None] & (d < D)[None, :]
    once = d + state_block * D < D
    own = n[:, None] * D + tl.multiple_of(d, 1)[None, :]
    rate = tl.load(A + m * N * D + own, mask=real, other=-1.0) * LOG2E
    band_bias = bias
    if bias is not None:
        band_bias = tl.load(bias + m * D + d, mask=d < D, other=0.0)
    carry = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for back in range(begin, end):
        t = begin + end - 1 - back
        at = (row * length + t) * BANDS + m
        step = tl.load(delta + at * D + d, mask=d < D, other=0.0).to(tl.float32)
        if bias is not None:
            step, _ = step_size(step + band_bias)
        c = tl.load(C + at * N + n, mask=n < N, other=0.0).to(tl.float32)
        e = tl.load(mix + at * HEADS + d * HEADS // D, mask=d < D, other=0.0).to(tl.float32)
        grad = e * tl.load(grad_y + (row * length + t) * D + d, mask=d < D, other=0.0).to(tl.float32)
        carry = tl.exp2(step[None, :] * rate) * (carry + c[:, None] * grad[None, :])
        total += step
    place_of = (row * chunks + chunk) * BANDS + m
    tl.store(carries + place_of * (N * D) + own, carry, mask=real)
    tl.store(totals + place_of * D + d, total, mask=once)


@triton.jit(do_not_specialize=SIZES)
def backward(u, delta, A, B, C, mix, skip, bias, lengths, checkpoints, grad_y, carries, scratch,
             grad_u, grad_delta, grad_A, grad_B, grad_C, grad_mix, grad_skip, grad_bias,
             length, span, chunks,
             BANDS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr, ZOH: tl.constexpr,
             TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """carries (B, chunks, M, N, D): gradient of the state after each chunk when called, before it on return.

    Partial sums: grad_u, grad_delta (B, L, M, state blocks, D); grad_B, grad_C (B, L, M, channel blocks, N); grad_mix
    (B, L, M, state blocks, D), or (B, L, M, state blocks, channel blocks) with one head; grad_A (B, chunks, M, N, D);
    grad_skip (B, chunks, M, D); grad_bias (B, chunks, M, state blocks, D).
    """
    row, chunk, m, state_block, channel_block, begin, end = place(
        lengths, length, span, chunks, BANDS, D, N, BLOCK_N, BLOCK_D
    )
    channel_blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    state_blocks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    lane = tl.arange(0, BLOCK_D)
    d = channel_block * BLOCK_D + lane
    n = state_block * BLOCK_N + tl.arange(0, BLOCK_N)
    real = (n < N)[:, None] & (d < D)[None, :]
    once = d + state_block * D < D
    own = n[:, None] * D + d[None, :]
    a = tl.load(A + m * N * D + own, mask=real, other=-1.0)
    rate = a * LOG2E
    inverse = 1.0 / rate
    weight = tl.zeros((BLOCK_D,), tl.float32)
    if skip is not None:
        weight = tl.load(skip + m * D + d, mask=once, other=0.0)
    band_bias = bias
    if bias is not None:
        band_bias = tl.load(bias + m * D + d, mask=d < D, other=0.0)
    place_of = (row * chunks + chunk) * BANDS + m
    carry = tl.load(carries + place_of * (N * D) + own, mask=real, other=0.0)
    sum_A = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    sum_skip = tl.zeros((BLOCK_D,), tl.float32)
    sum_bias = tl.zeros((BLOCK_D,), tl.float32)
    tile_of_states: tl.constexpr = BLOCK_N * BLOCK_D
    slots = scratch + tl.program_id(0).to(tl.int64) * (TILE * tile_of_states)
    slots += tl.arange(0, BLOCK_N)[:, None] * BLOCK_D + lane[None, :]
    all_tiles = (length + TILE - 1) // TILE
    tiles = (end - begin + TILE - 1) // TILE
    for later_tiles in range(tiles):
        start = begin + (tiles - 1 - later_tiles) * TILE
        stop = tl.minimum(start + TILE, end)
        kept = (row * all_tiles + start // TILE) * BANDS + m
        h = tl.load(checkpoints + kept * (N * D) + own, mask=real, other=0.0)
        for t in range(start, stop):
            tl.store(slots + (t - start) * tile_of_states, h)
            at = (row * length + t) * BANDS + m
            x, step, _slope, b = read_step(u, delta, B, band_bias, at, d, n, D, N)
            h = advance(h, x, step, b, rate, inverse, ZOH)
        tl.debug_barrier()
        for back in range(start, stop):
            t = start + stop - 1 - back
            at = (row * length + t) * BANDS + m
            x, step, slope, b = read_step(u, delta, B, band_bias, at, d, n, D, N)
            c = tl.load(C + at * N + n, mask=n < N, other=0.0).to(tl.float32)
            e = tl.load(mix + at * HEADS + d * HEADS // D, mask=d < D, other=0.0).to(tl.float32)
            grad_mixed = tl.load(grad_y + (row * length + t) * D + d, mask=d < D, other=0.0).to(tl.float32)
            grad = e * grad_mixed
            part = (at * state_blocks + state_block) * D + d
            sums = (at * channel_blocks + channel_block) * N + n
            # h is still the state after the step.
            tl.store(grad_C + sums, tl.sum(h * grad[None, :], 1), mask=n < N)
            product = grad_mixed * (tl.sum(h * c[:, None], 0) + weight * x)
            if HEADS == 1:
                mixed_at = (at * state_blocks + state_block) * channel_blocks + channel_block
                tl.store(grad_mix + mixed_at, tl.sum(product, 0))
            else:
                tl.store(grad_mix + part, product, mask=d < D)
            # Read in every step: kept, it would be what spills.
            rate = tl.load(A + m * N * D + own, mask=real, other=-1.0) * LOG2E
            h = tl.load(slots + (t - start) * tile_of_states)
            decay, gain = decay_and_gain(step, rate, inverse, ZOH)
            grad_h = carry + c[:, None] * grad[None, :]
            carry = decay * grad_h
            if ZOH:
                # dh/dstep = ln(2) decay (B v + rate h_{t-1});
                # dh/drate has, besides step / rate of it, -gain B v / rate.
                v = x * LOG2E
                drive = b[:, None] * v[None, :]
                grad_drive = grad_h * gain
                slopes = carry * (drive + rate * h)
                sum_A += slopes * (step * LN2)[None, :] - grad_drive * drive
                grad_step = tl.sum(slopes, 0) * LN2
                grad_x = tl.sum(grad_drive * b[:, None], 0) * LOG2E
                grad_b = tl.sum(grad_drive * v[None, :], 1)
            else:
                slopes = carry * h
                sum_A += slopes * step[None, :]
                along = tl.sum(grad_h * b[:, None], 0)
                grad_step = tl.sum(slopes * rate, 0) * LN2 + along * x
                grad_x = along * step
                grad_b = tl.sum(grad_h * (x * step)[None, :], 1)
            if bias is not None:
                grad_step *= slope
                sum_bias += grad_step
            tl.store(grad_u + part, grad_x + weight * grad, mask=d < D)
            tl.store(grad_delta + part, grad_step, mask=d < D)
            tl.store(grad_B + sums, grad_b, mask=n < N)
            sum_skip += grad * x
        # The next tile overwrites the slots.
        tl.debug_barrier()
    tl.store(carries + place_of * (N * D) + own, carry, mask=real)
    if ZOH:
        sum_A *= inverse * LOG2E
    tl.store(grad_A + place_of * (N * D) + own, sum_A, mask=real)
    if skip is not None:
        tl.store(grad_skip + place_of * D + d, sum_skip, mask=once)
    if bias is not None:
        tl.store(grad_bias + (place_of * state_blocks + state_block) * D + d, sum_bias, mask=d < D)
