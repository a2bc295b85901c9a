"""What training keeps and needs at most: a stack of ten blocks with and without recomputation, over the levels.

python -m benchmarks.blocks [--length 1024] [--rounds 3]

Each row computes in a fresh process (Linux). *Kept* is the growth of the process over blocks 6 to 10 of a forward,
per block; *peak* the most that a whole training step takes above what stood before, both times the stack's input.
Every tensor has pages of its own there, which leave with it, so that growth is exact; times are taken without that.
"""

import argparse
import ctypes
import re
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.fresh import in_fresh_process
from msssm import Backbone, MultiScaleSSM

BLOCKS, BATCH, CHANNELS = 10, 8, 128
LEVELS = (0, 3, 5)
_MMAP_THRESHOLD = -3  # of mallopt(3)


def main(args: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each row; the shortest counts")
    options = parser.parse_args(args)
    print(f"({BATCH}, {options.length}, {CHANNELS}), N = 16, {BLOCKS} blocks, {torch.get_num_threads()} threads\n")
    print("| layer, norm | S | recompute | kept per block | peak of a step | step, s |\n|---|---|---|---|---|---|")
    for ssm, norm in (("s6", "layer"), ("s6", "batch"), ("s4", "layer")):
        for levels in LEVELS:
            for recompute in (False, True):
                case = (ssm, norm, levels, recompute, options.length)
                kept, peak = in_fresh_process(_memory, *case)
                seconds = in_fresh_process(_seconds, *case, options.rounds)
                print(
                    f"| {ssm}, {norm} | {levels} | {recompute} | {kept:.2f} | {peak:.1f} | {seconds:.2f} |", flush=True
                )


def _stack(ssm: str, norm: str, levels: int, recompute: bool) -> Backbone:
    torch.manual_seed(0)
    layer = partial(MultiScaleSSM, levels=levels, ssm=ssm)
    return Backbone(layer, CHANNELS, BLOCKS, norm, dropout=0.1, recompute=recompute)  # type: ignore[arg-type]


def _memory(ssm: str, norm: str, levels: int, recompute: bool, length: int) -> tuple[float, float]:
    """Kept per block, and peak of a step."""
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 16)
    stack = _stack(ssm, norm, levels, recompute)
    stack(torch.randn(1, 64, CHANNELS)).sum().backward()  # what a first call loads, and the gradients
    x = torch.randn(BATCH, length, CHANNELS)
    unit, before = x.numel() * x.element_size(), _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is resident now
    y, grown = x, []
    for block in stack.blocks:
        y = block(y)
        grown.append(_status("VmRSS"))
    y.square().sum().backward()
    return (grown[-1] - grown[4]) / (BLOCKS - 5) / unit, (_status("VmHWM") - before) / unit


def _seconds(ssm: str, norm: str, levels: int, recompute: bool, length: int, rounds: int) -> float:
    stack, x = _stack(ssm, norm, levels, recompute), torch.randn(BATCH, length, CHANNELS)
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        stack(x).square().sum().backward()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _status(field: str) -> int:
    """Bytes, from /proc."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
