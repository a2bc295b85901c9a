"""What the selective scan should take on a GPU, from its compiled kernels alone: predicted, nothing here was measured.

A scheduler issues one instruction a cycle, its exponential unit takes a warp every eight, and a warp waits where it
reads what a load still fetches. A turn of a loop takes the longer of the exponentials and of the instructions with the
wait, for the warps that lie on a scheduler. Every load is taken to go to memory, but for the backward's own slots,
which lie in the L2 cache. Left out: waits between dependent instructions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from benchmarks.cubins import Kernel, Loop, Usage, configurations, measure
from msssm.scan.triton import common

# NVIDIA H200: clock under load and bytes a second as a copy reaches them; a load that goes to memory, and a launch.
MULTIPROCESSORS, CLOCK, BANDWIDTH = 132, 1.755e9, 4.3e12
LATENCY, CACHE, LAUNCH = 800, 300, 4e-6  # cycles, cycles, seconds
# The backward reads its slots in words of 128 bits, and nothing else.
SLOTS, OTHERS = r"LDG\.E\.128", r"LDG\.E(?!\.128)"
SCHEDULERS = 4 * MULTIPROCESSORS
MOST_PROGRAMS, REGISTERS = 32, 65536  # of a multiprocessor
EXPONENTIAL = 8  # cycles that the unit takes for a warp
STATES, BANDS, TYPE, FLOAT = 16, 5, 2, 4  # bfloat16 in and out
SHAPES = ((50, 1024, 256), (8, 4096, 1024), (1, 16384, 256))  # (B, L, D)


@dataclass(frozen=True)
class Pass:
    """One launch: programs of one warp that run `loops`, each `steps` steps long."""

    usage: Usage
    steps_in_turn: tuple[int, ...]
    programs: int
    steps: int
    channels: int  # of a program
    slots: bool = False

    @property
    def resident(self) -> int:
        """Programs that a multiprocessor holds at a time."""
        return min(MOST_PROGRAMS, REGISTERS // (32 * 8 * ceil(self.usage.registers / 8)))

    @property
    def warps(self) -> float:
        """Warps on a scheduler, when all that fit are there."""
        return min(self.programs / SCHEDULERS, self.resident / 4)

    def per_step(self, opcode: str = "") -> float:
        """Instructions of a warp for a step of 32 channels; of one kind, where named."""
        loops = zip(self.usage.loops, self.steps_in_turn, strict=True)
        counts = ((loop.opcodes[opcode] if opcode else len(loop.instructions), turn) for loop, turn in loops)
        return sum(count / turn for count, turn in counts) * 32 / self.channels

    @property
    def lead(self) -> int:
        """Instructions of a warp between a load and the first that reads it: the shortest that the pass has."""
        return min(min(loop.leads(OTHERS if self.slots else "LDG")) for loop in self.usage.loops)

    @property
    def seconds(self) -> float:
        held = SCHEDULERS * self.resident // 4
        full, rest = divmod(self.programs, held)
        cycles = full * self._cycles(self.resident / 4) + self._cycles(ceil(rest / SCHEDULERS))
        return self.steps * cycles / CLOCK

    def _cycles(self, warps: float) -> float:
        """Of one step of each of the warps on a scheduler."""
        loops = zip(self.usage.loops, self.steps_in_turn, strict=True)
        return sum(_turn(loop, warps, self.slots) / turn for loop, turn in loops)


def _turn(loop: Loop, warps: float, slots: bool) -> float:
    if not warps:
        return 0.0
    # Before a warp may read what it loaded, the others issue as much as it does itself.
    waiting = max(0.0, LATENCY - warps * min(loop.leads(OTHERS if slots else "LDG")))
    if slots and loop.leads(SLOTS):
        waiting = max(waiting, CACHE - warps * min(loop.leads(SLOTS)))
    return max(warps * len(loop.instructions) + waiting, warps * EXPONENTIAL * loop.opcodes["MUFU"])


@dataclass(frozen=True)
class Prediction:
    passes: tuple[Pass, ...]
    traffic: float  # bytes that the passes move, slots included
    added: float  # bytes of adding the partial sums
    bound: float  # seconds

    @property
    def seconds(self) -> float:
        busy = max(sum(x.seconds for x in self.passes), self.traffic / BANDWIDTH)
        return busy + self.added / BANDWIDTH + LAUNCH * (len(self.passes) + 2 * (len(self.passes) > 1) + 1)


def bound(shape: tuple[int, int, int], zoh: bool, backward: bool) -> float:
    """No kernel is faster: the exponentials, the arithmetic, or the bytes that must come and go.

    Forward, per state: the exponent, the drive, the state and the output, and ten more for zero-order hold's gain. The
    backward computes the states again, and has ten operations per state for the gradients. Softplus takes 15.
    """
    batch, length, channels = shape
    steps = batch * length * BANDS * channels / 32  # of a warp
    exponentials = (STATES + 1) * (2 if backward else 1)
    operations = (3 + 10 + 20 * zoh if backward else 4 + 10 * zoh) * STATES + 15 * (2 if backward else 1)
    cycles = max(EXPONENTIAL * exponentials, operations)
    tensors = 2 * BANDS + 1 + 2 * BANDS * STATES / channels + (2 * BANDS if backward else 0)
    return max(steps * cycles / (SCHEDULERS * CLOCK), batch * length * channels * TYPE * tensors / BANDWIDTH)


def predictions(
    architecture: int, zoh: bool, configuration: common.Configuration
) -> Iterator[tuple[tuple[int, int, int], str, Prediction]]:
    """Shape, direction and prediction."""
    kernels = configurations("bf16", STATES, BANDS, configuration)
    kind = "zoh" if zoh else "euler"

    def compiled(name: str) -> Usage:
        kernel: Kernel = kernels[name]
        return measure(*kernel, architecture)

    ahead, block = configuration.ahead, 1 if zoh else 2
    names = (f"forward {kind}, first pass", f"forward {kind}", "backward, first pass", f"backward {kind}")
    first, forward, first_back, backward = map(compiled, names)
    for shape in SHAPES:
        batch, length, channels = shape
        elements = batch * length * channels
        for direction in ("forward", "backward"):
            back = direction == "backward"
            blocks = ceil(channels / (32 if back else configuration.channels))
            chunks, span = common.split(batch * BANDS * blocks, length, 4 * SCHEDULERS)
            programs = batch * BANDS * blocks * chunks
            second = (
                Pass(backward, (4, block), programs, span, 32, slots=True)
                if back
                else Pass(forward, (ahead,), programs, span, configuration.channels)
            )
            before = (
                Pass(first_back, (2,), programs, span, 32)
                if back
                else Pass(first, (ahead,), programs, span, configuration.channels)
            )
            checkpoints = elements * BANDS * STATES * FLOAT / common.TILE
            traffic = elements * TYPE * (2 * BANDS + 1) + checkpoints
            if back:
                # Gradients of u and delta, parts of those of B and C, and the slots, written and read.
                parts = 2 * batch * length * BANDS * blocks * STATES * FLOAT
                slots = 2 * elements * BANDS * STATES * FLOAT / block
                traffic += elements * TYPE * 2 * BANDS + parts + slots
            else:
                parts = elements * BANDS * FLOAT
                traffic += parts
            passes = (second,) if chunks == 1 else (before, second)
            found = Prediction(passes, traffic, parts + elements * TYPE, bound(shape, zoh, back))
            yield shape, direction, found


def table(architecture: int) -> str:
    """The predictions in Markdown, every configuration and both discretizations."""
    rows = [
        "| discretization | channels, ahead, registers | shape (B, L, D) | direction | warps | lead | instructions |"
        " exponentials | GB | predicted ms | bound ms | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for zoh in (False, True):
        for configuration in common.CONFIGURATIONS:
            for shape, direction, found in predictions(architecture, zoh, configuration):
                last = found.passes[-1]
                exponentials = sum(x.per_step("MUFU") for x in found.passes)
                instructions = sum(x.per_step() for x in found.passes)
                gigabytes = (found.traffic + found.added) / 1e9
                rows.append(
                    f"| {'zoh' if zoh else 'euler'} | {', '.join(map(str, configuration))} | {shape} | {direction} | "
                    f"{last.warps:.1f} | {last.lead} | {instructions:.0f} | {exponentials:.0f} | {gigabytes:.2f} | "
                    f"{1e3 * found.seconds:.2f} | {1e3 * found.bound:.2f} | {found.seconds / found.bound:.2f} |"
                )
    return "\n".join(rows)
