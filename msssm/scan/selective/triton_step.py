"""Arithmetic and loads of one step of the selective scan, which its kernels inline. Names as in `selective_kernels`."""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator, assignment"
# Triton has no types.

import triton
import triton.language as tl

from msssm.scan.delta import MAX_DELTA, MIN_DELTA

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
LOWEST: tl.constexpr = tl.constexpr(MIN_DELTA)
HIGHEST: tl.constexpr = tl.constexpr(MAX_DELTA)


@triton.jit
def decay_and_gain(step, rate, inverse, ZOH: tl.constexpr):
    """Computes 2^(step rate) and (2^(step rate) - 1) / rate (1 under Euler), with inverse = 1 / rate.

    The gain of zero-order hold, expm1(step A) / A, is log2(e) times the latter: the input gets this factor.
    """
    x = step[None, :] * rate
    decay = tl.exp2(x)
    if ZOH:
        # (2^x - 1) / x on [-3/4, 0], relative error 2e-7; below, 2^x - 1 loses at most two bits.
        p = 0.0010745241306722164 * x + 0.009452960453927517
        p = p * x + 0.05545998737215996
        p = p * x + 0.24022231996059418
        p = p * x + 0.6931471228599548
        gain = tl.where(x > -0.75, p * step[None, :], decay * inverse - inverse)
    else:
        gain = 1.0
    return decay, gain


@triton.jit
def softplus(z):
    """Computes log(1 + exp(z)), exact to float32 for every z, and exp(-|z|)."""
    e = tl.exp2(-tl.abs(z) * LOG2E)
    # log(1 + e) / e on [0, 1], relative error 3e-8.
    p = 0.0052326937 * e - 0.0295052401
    p = p * e + 0.07822596092
    p = p * e - 0.1366324728
    p = p * e + 0.191060079
    p = p * e - 0.2484298267
    p = p * e + 0.333190969
    p = p * e - 0.4999949315
    p = p * e + 0.9999999699
    return tl.maximum(z, 0.0) + e * p, e


@triton.jit
def clamp(step):
    """Limits a step size to [MIN_DELTA, MAX_DELTA]."""
    return tl.minimum(tl.maximum(step, LOWEST), HIGHEST)


@triton.jit
def softplus_and_slope(z):
    """The step size of z and its derivative, which is 0 outside of the limits."""
    step, e = softplus(z)
    slope = tl.where(z >= 0.0, 1.0, e) / (1.0 + e)
    within = (step >= LOWEST) & (step <= HIGHEST)
    return clamp(step), tl.where(within, slope, 0.0)


@triton.constexpr_function
def paired(row, N):
    """Whether values are loaded in pairs: 16 bits, and an even number of them."""
    return row.dtype.element_ty.primitive_bitwidth == 16 and N % 2 == 0


@triton.jit
def load_weights(row, state_block, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """Loads B or C of one step as stored; 16-bit values in pairs, which `widen` separates."""
    if paired(row, N):
        w = state_block * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        words = row.to(tl.pointer_type(tl.int32))
        found = tl.load(words + w) if N % BLOCK_N == 0 else tl.load(words + w, mask=w < N // 2, other=0)
    else:
        n = state_block * BLOCK_N + tl.arange(0, BLOCK_N)
        found = tl.load(row + n) if N % BLOCK_N == 0 else tl.load(row + n, mask=n < N, other=0.0)
    return found


@triton.jit
def widen(found, like, N: tl.constexpr):
    """Converts the result of `load_weights` to float32."""
    if paired(like, N):
        if like.dtype.element_ty == tl.bfloat16:
            low = (found << 16).to(tl.float32, bitcast=True)
            high = (found & -65536).to(tl.float32, bitcast=True)
        else:
            low = found.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
            high = (found >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        values = tl.interleave(low, high)
    else:
        values = found.to(tl.float32)
    return values


@triton.jit
def below(i, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Mask i < SIZE, a constant if the blocks fill the size, which saves its registers."""
    return tl.zeros((BLOCK,), tl.int32) == 0 if SIZE % BLOCK == 0 else i < SIZE


@triton.jit
def load_some(pointers, i, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Loads values, zeros where i >= SIZE; without a mask if the blocks fill the size."""
    return tl.load(pointers) if SIZE % BLOCK == 0 else tl.load(pointers, mask=i < SIZE, other=0.0)


@triton.jit
def head_of(d, D: tl.constexpr, HEADS: tl.constexpr):
    """Head of each channel; a single number if there is one head."""
    return 0 if HEADS == 1 else d * HEADS // D


@triton.jit
def advance(h, x, step, b, rate, inverse, ZOH: tl.constexpr):
    """Computes h_t from h_{t-1}."""
    decay, gain = decay_and_gain(step, rate, inverse, ZOH)
    if ZOH:
        h = decay * h + gain * (b[:, None] * (x * LOG2E)[None, :])
    else:
        h = decay * h + b[:, None] * (x * step)[None, :]
    return h
