"""Parts that the kernels share: the division of the work among programs, and of a long sequence into chunks.

A program is one warp, a lane one or two channels, and the states of a program, (BLOCK_N, BLOCK_D), stay in registers;
time runs sequentially. If batch and channels do not fill the device, the length is cut into chunks that run in
parallel, twice: the first pass starts from zero states and gives each chunk's own contribution to its last state; a
short chain over the chunks then gives their true first states, from which the second pass starts.

Names in all kernels: `d` and `n` are the channels and states of the program, `own` their offsets in (N, D), `real` the
mask of those that exist, `once` the mask for results that only the first block of states writes, `at` the index of
(row, step, band) in tensors (B, L, M, ...). Tensors are contiguous.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
# Triton has no types.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Largest number of states of a channel in one lane.
MOST_STATES = 16
# Steps between checkpoints, the same in every configuration: a forward and its backward may run in different ones.
TILE = 64
# Multiplications and additions may join into one; Triton 3.9 warns of a kernel that does not say so.
FUSION: dict[str, Any] = {"enable_fp_fusion": True}
# The bound on registers is the hardware's own. Without it, ptxas spills a few bytes for an occupancy that these grids
# do not reach.
OPTIONS: dict[str, Any] = {"num_warps": 1, "num_stages": 1, "maxnreg": 255, **FUSION}


# Channels of one program of the forward, a multiple of 32.
CHANNELS = 32
# Steps between a load and the arithmetic that uses it; divides TILE.
AHEAD = 2
# Limit for a lane with 16-bit inputs: with 128, four warps fit on each scheduler.
REGISTERS = 128


def options(dtype: torch.dtype, whole: bool) -> dict[str, Any]:
    """Launch options of the forward for inputs of this dtype; `whole` if the states fill their block.

    float32 inputs loaded ahead take twice the registers, and masks of states take some: both would spill.
    """
    return OPTIONS | {"maxnreg": REGISTERS if dtype.itemsize == 2 and whole else 255}


# Not specialised: Triton would compile again for lengths that are 1 or multiples of 16.
SIZES = ["length", "span", "chunks"]


@triton.jit
def place(lengths, length, span, chunks, BANDS: tl.constexpr, D: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr,
          BLOCK_D: tl.constexpr):  # fmt: skip
    """This program's row, chunk, band, block of states and block of channels, and its steps [begin, end).

    The program id counts blocks of channels fastest, then blocks of states, bands, chunks and rows. lengths (B,) int64
    or None; `span` is the number of steps of a chunk.
    """
    program = tl.program_id(0)
    channel_blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    state_blocks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    channel_block = program % channel_blocks
    state_block = program // channel_blocks % state_blocks
    band = program // (channel_blocks * state_blocks) % BANDS
    outer = program // (channel_blocks * state_blocks * BANDS)
    chunk = (outer % chunks).to(tl.int64)
    row = (outer // chunks).to(tl.int64)
    begin = chunk * span
    end = tl.minimum(begin + span, length)
    if lengths is not None:
        end = tl.minimum(end, tl.load(lengths + row))
    return row, chunk, band, state_block, channel_block, begin, end


@triton.jit
def whether(i, end, BLOCK: tl.constexpr):
    """Mask (BLOCK,) that is i < end throughout."""
    return tl.full((BLOCK,), i, tl.int32) < end


@triton.jit(do_not_specialize=["size", "chunks"])
def chain(decay, states, initial, size, chunks, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """Replaces each chunk's own contribution, states (B, chunks, size), by the state before the chunk.

    s_{c+1} = decay_c s_c + states_c from s_0 = initial (B, size), decay (B, chunks, size); REVERSE runs from the last
    chunk to the first. Programs: (blocks of `size`, rows).
    """
    row = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = i < size
    state = tl.load(initial + row * size + i, mask=ok, other=0.0)
    for k in range(chunks):
        chunk = chunks - 1 - k if REVERSE else k
        at = (row * chunks + chunk) * size + i
        own = tl.load(states + at, mask=ok, other=0.0)
        a = tl.load(decay + at, mask=ok, other=0.0)
        tl.store(states + at, state, mask=ok)
        state = a * state + own


@triton.jit(do_not_specialize=["size", "length"])
def add_parts(parts, total, lengths, size, length, COUNT: tl.constexpr, INNER: tl.constexpr, STEP: tl.constexpr,
              BLOCK: tl.constexpr):  # fmt: skip
    """Writes total (B, L, ..., INNER), the sum of parts (B, L, ..., COUNT, INNER) over COUNT in ascending order.

    `size` is the number of elements of the total, STEP that of one time step. Past a row's length nothing is read and
    the total is 0. Programs: blocks of `size`.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = i < size
    if lengths is not None:
        time = i // STEP
        ok &= time % length < tl.load(lengths + time // length, mask=ok, other=0)
    at = parts + i // INNER * (COUNT * INNER) + i % INNER
    found = tl.zeros((BLOCK,), tl.float32)
    for k in range(COUNT):
        found += tl.load(at + k * INNER, mask=ok, other=0.0)
    tl.store(total + i, found, mask=i < size)


def cdiv(x: int, y: int) -> int:
    """Quotient x / y, rounded up."""
    return -(-x // y)


def run_chain(decay: Tensor, states: Tensor, initial: Tensor, reverse: bool) -> None:
    """Runs `chain` on states and decay (B, chunks, M, N, D) and initial (B, M, N, D), in place."""
    batch, chunks = states.shape[:2]
    size, block = initial[0].numel(), 128
    chain[(cdiv(size, block), batch)](decay, states, initial, size, chunks, reverse, block, **OPTIONS)


def block_of_states(states: int, most: int = MOST_STATES) -> int:
    """Number of states of one program, a power of two."""
    return int(min(triton.next_power_of_2(states), most))


def cut(programs: int, length: int, device: torch.device) -> tuple[int, int]:
    """Number of chunks, and of steps in each, for work that has `programs` programs per chunk."""
    return split(programs, length, warps_wanted(device))


def split(programs: int, length: int, wanted: int) -> tuple[int, int]:
    """Computes `cut` for a device that needs `wanted` warps.

    The first pass doubles the work, so that fewer than four chunks would not be faster.
    """
    tiles = max(1, cdiv(length, TILE))
    chunks = min(wanted // max(1, programs), tiles)
    if chunks < 4:
        chunks = 1
    span = cdiv(tiles, chunks)
    return cdiv(tiles, span), span * TILE


def warps_wanted(device: torch.device) -> int:
    """Number of warps that fill a device: four on each of a multiprocessor's four schedulers, limited by registers."""
    return 16 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def add_up(parts: Tensor, lengths: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Sums parts (B, L, ..., K, inner) over K, in a fixed order, so that two runs are bit-equal."""
    batch, length, *between, count, inner = parts.shape
    if count == 1:
        return parts.squeeze(-2).to(dtype)
    total = parts.new_empty(batch, length, *between, inner, dtype=dtype)
    if total.numel():
        step, block = total[0, 0].numel(), 1024
        add_parts[(cdiv(total.numel(), block),)](
            parts, total, lengths, total.numel(), length, COUNT=count, INNER=inner, STEP=step, BLOCK=block, **FUSION
        )
    return total


def empty(partial_read: bool) -> Any:
    """Returns torch.zeros for results that padding leaves partly unwritten, else torch.empty."""
    return torch.zeros if partial_read else torch.empty


def over_heads(products: Tensor, mix: Tensor) -> Tensor:
    """Gradient of mix (B, L, M, H) from partial sums (B, L, M, state blocks, D), or channel blocks if H = 1."""
    heads = mix.shape[-1]
    return products.sum(3).unflatten(-1, (heads, -1)).sum(-1).to(mix.dtype)
