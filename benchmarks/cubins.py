"""Registers, spills, shared memory and instructions of the GPU kernels, compiled ahead of time: no GPU is needed.

Prints one line per kernel and architecture: python -m benchmarks.cubins
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from msssm.scan.selective import triton_common as common
from msssm.scan.selective import triton_kernels as selective_kernels

ARCHITECTURES = (80, 90, 100)
TYPES = ("fp32", "bf16", "fp16")
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Loop:
    """The instructions of an innermost loop, in order, without their predicates."""

    instructions: tuple[str, ...]

    @property
    def opcodes(self) -> Counter[str]:
        return Counter(re.split(r"[ .;]", line, maxsplit=1)[0] for line in self.instructions)

    def leads(self, kind: str = "LDG") -> list[int]:
        """For each load from global memory, the instructions until the first that reads what it loads.

        kind: a pattern of the opcodes meant. A multiprocessor issues in order: this is the work that a warp has for
        itself while the load is under way. What the loop carries to its next turn is read there, or by the copy that
        carries it.
        """
        twice = self.instructions * 2
        return [_distance(twice, at) for at, line in enumerate(self.instructions) if re.match(kind, line)]


def _distance(lines: tuple[str, ...], at: int) -> int:
    opcode, first = re.match(r"(\S+) R(\d+),", lines[at]).groups()  # type: ignore[union-attr]
    width = 4 if ".128" in opcode else 2 if ".64" in opcode else 1
    loaded = {f"R{int(first) + i}" for i in range(width)}
    for later in range(at + 1, at + len(lines) // 2):
        registers = re.findall(r"\bR\d+\b", lines[later])
        writes = not lines[later].startswith(("ST", "R2UR", "ISETP", "FSETP"))
        if loaded & set(registers[1:] if writes else registers):
            return later - at
    return len(lines) // 2


@dataclass(frozen=True)
class Usage:
    """What `cuobjdump --dump-resource-usage` says of a kernel, in bytes but for `registers`; its innermost loops."""

    registers: int
    stack: int
    local: int
    shared: int
    loops: tuple[Loop, ...]

    @property
    def loop(self) -> Counter[str]:
        """The opcodes of the loop with the most instructions; none of a kernel without a loop."""
        return max((loop.opcodes for loop in self.loops), key=Counter.total, default=Counter())

    @property
    def line(self) -> str:
        """Registers, bytes of spills and shared memory, and the instructions of the loop, in the columns of `main`."""
        opcodes = ", ".join(f"{count} {opcode}" for opcode, count in self.loop.most_common(6))
        loop = f"{self.loop.total()}: {opcodes}" if self.loops else "no loop"
        return f"{self.registers:9} {self.stack + self.local:6} {self.shared:6}  {loop}"


Kernel = tuple[Any, dict[str, Any], dict[str, Any]]


def launches(dtype: str, states: int = 16, bands: int = 5) -> dict[str, Kernel]:
    """Kernel, arguments and options by name, as the scans launch them: "*type" a pointer, "i32" a size, a constant."""
    x, f, sizes = "*" + dtype, "*fp32", {"length": "i32", "span": "i32", "chunks": "i32"}
    tile, ahead = {"TILE": common.TILE}, {"AHEAD": common.AHEAD}
    block = {"BLOCK_N": common.block_of_states(states), "BLOCK_D": common.CHANNELS}
    back = {"BLOCK_N": common.block_of_states(states), "BLOCK_D": 32}
    shape = {"BANDS": bands, "D": 256, "N": states, "HEADS": 1}
    optional = {"skip": f, "bias": f, "lengths": "*i64"}
    inputs = {"u": x, "delta": x, "A": f, "B": x, "C": x, "mix": x, **optional}
    found: dict[str, Kernel] = {}
    options = common.options(
        torch.float32 if dtype == "fp32" else torch.float16, states == common.block_of_states(states)
    )
    most = common.OPTIONS
    for zoh in (True, False):
        kind = "zoh" if zoh else "euler"
        forward = {**inputs, "states": f, **sizes, **shape, **block, **tile, **ahead, "ZOH": zoh}
        outputs = {"totals": None, "checkpoints": f, "y": x if bands == 1 and states <= common.MOST_STATES else f}
        found[f"forward {kind}"] = selective_kernels.forward, forward | outputs, options
        outputs |= {"checkpoints": None}
        found[f"forward {kind}, no gradients"] = selective_kernels.forward, forward | outputs, options
        outputs = {"totals": f, "checkpoints": None, "y": None}
        found[f"forward {kind}, first pass"] = selective_kernels.forward, forward | outputs, options
        gradients = dict.fromkeys(("grad_A", "grad_B", "grad_C", "grad_mix", "grad_skip", "grad_bias"), f)
        gradients |= dict.fromkeys(("grad_u", "grad_delta"), x if states <= common.MOST_STATES else f)
        found[f"backward {kind}"] = (
            selective_kernels.backward,
            {**inputs, "checkpoints": f, "grad_y": x, "carries": f, "scratch": f, **gradients, **sizes, **shape}
            | {**back, **tile, "ZOH": zoh, "BLOCK": 2 if not zoh and states == common.block_of_states(states) else 1},
            most,
        )
    given = {name: inputs[name] for name in ("delta", "A", "C", "mix", "bias", "lengths")}
    found["backward, first pass"] = (
        selective_kernels.carry_back,
        {**given, "grad_y": x, "carries": f, "totals": f, **sizes, **shape, **back, **tile, "AHEAD": 2},
        most,
    )
    parts = {"parts": f, "total": x, "lengths": "*i64", "size": "i32", "length": "i32"}
    parts |= {"COUNT": bands, "INNER": 256, "STEP": 256, "BLOCK": 1024}
    found["add parts"] = common.add_parts, parts, common.FUSION
    joined = {"decay": f, "states": f, "initial": f, "size": "i32", "chunks": "i32"}
    found["chain"] = common.chain, joined | {"REVERSE": True, "BLOCK": 128}, most
    return found


def measure(kernel: Any, arguments: dict[str, Any], options: dict[str, Any], architecture: int) -> Usage:
    """Compiles a kernel for sm_`architecture` and reads the cubin."""
    at = {name: i for i, name in enumerate(kernel.arg_names)}
    typed = {name: a for name, a in arguments.items() if isinstance(a, str)}
    constants = {name: a for name, a in arguments.items() if name not in typed}
    signature = {name: typed.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {(at[name],): [["tt.divisibility", 16]] for name, kind in typed.items() if kind.startswith("*")}
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", cubin.name)
        assembly = _tool("nvdisasm", "-c", cubin.name)
    registers, stack, local, shared = (
        int(re.search(rf"\b{name}:(\d+)", usage)[1])  # type: ignore[index]
        for name in ("REG", "STACK", "LOCAL", "SHARED")
    )
    return Usage(registers, stack, local, shared, _innermost_loops(assembly))


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def _innermost_loops(assembly: str) -> tuple[Loop, ...]:
    """What stands between a label and the last branch back to it, and holds no other such loop."""
    labels: dict[str, int] = {}
    loops: dict[int, int] = {}
    lines: list[str] = []
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        if instruction := re.search(r"\*/\s+(?:@!?U?P\d+ )?\s*([A-Z][A-Z0-9_.]*.*?)\s*;", line):
            lines.append(instruction[1])
            target = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if target and target[1] in labels:
                loops[labels[target[1]]] = len(lines)
    return tuple(
        Loop(tuple(lines[start:end]))
        for start, end in sorted(loops.items())
        # The last line of every kernel branches to itself.
        if end - start > 1 and not any(start < s and e <= end and e - s > 1 for s, e in loops.items())
    )


def main() -> None:
    print(
        f"{'kernel':32} {'types':5} {'sm':>4} {'registers':>9} {'spills':>6} {'shared':>6}",
        " instructions of the inner loop",
    )
    for dtype, architecture in product(TYPES, ARCHITECTURES):
        for name, kernel in launches(dtype).items():
            print(f"{name:32} {dtype:5} {architecture:4} {measure(*kernel, architecture).line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
