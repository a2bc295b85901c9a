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

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from msssm.scan.gpu import common, lti_kernels, selective_kernels

ARCHITECTURES = (80, 90, 100)
TYPES = ("fp32", "bf16", "fp16")
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Usage:
    """What `cuobjdump --dump-resource-usage` says of a kernel, in bytes but for `registers`.

    `loop` counts the instructions of the innermost loop with the most of them.
    """

    registers: int
    stack: int
    local: int
    shared: int
    loop: Counter[str]


def configurations(dtype: str, states: int = 16, bands: int = 5) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Kernel and arguments by name, as the scans launch them: "*type" a pointer, "i32" a size, others constants."""
    x, f, sizes = "*" + dtype, "*fp32", {"length": "i32", "span": "i32", "chunks": "i32"}
    block = {"BLOCK_N": common.block_of_states(states), "BLOCK_D": common.BLOCK_D}
    shape = {"BANDS": bands, "D": 256, "N": states, "HEADS": 1}
    optional = {"skip": f, "bias": f, "lengths": "*i64"}
    inputs = {"u": x, "delta": x, "A": f, "B": x, "C": x, "mix": x, **optional}
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    for zoh in (True, False):
        kind = "zoh" if zoh else "euler"
        forward = {**inputs, "states": f, **sizes, **shape, **block, "ZOH": zoh, "TILE": common.TILE}
        outputs = {"totals": None, "checkpoints": f, "scratch": f, "y": x if states <= common.MOST_STATES else f}
        found[f"forward {kind}"] = selective_kernels.forward, forward | outputs
        outputs |= {"checkpoints": None}
        found[f"forward {kind}, no gradients"] = selective_kernels.forward, forward | outputs
        outputs = {"totals": f, "checkpoints": None, "scratch": None, "y": None}
        found[f"forward {kind}, first pass"] = selective_kernels.forward, forward | outputs
        gradients = dict.fromkeys(("grad_A", "grad_B", "grad_C", "grad_mix", "grad_skip", "grad_bias"), f)
        gradients |= dict.fromkeys(("grad_u", "grad_delta"), x)
        found[f"backward {kind}"] = (
            selective_kernels.backward,
            {**inputs, "checkpoints": f, "grad_y": x, "carries": f, "scratch": f, **gradients, **sizes, **shape}
            | {**block, "ZOH": zoh, "TILE": common.TILE},
        )
    given = {name: inputs[name] for name in ("delta", "A", "C", "mix", "bias", "lengths")}
    found["backward, first pass"] = (
        selective_kernels.carry_back,
        {**given, "grad_y": x, "carries": f, "totals": f, **sizes, **shape, **block},
    )
    for is_complex in (False, True):
        kind = "complex" if is_complex else "real"
        plane = {"N": states, "BLOCK_N": lti_kernels.block_of_states(states, is_complex), "COMPLEX": is_complex}
        inputs = {"u": x, "decay": f, "weight": f, "mix": x, "skip": f, "lengths": "*i64"}
        every = {**sizes, "planes_apart": "i32", **shape, "BLOCK_D": common.BLOCK_D, **plane}
        forward = {**inputs, "states": f, **every, "TILE": common.TILE}
        found[f"lti {kind} forward"] = lti_kernels.forward, forward | {"scratch": f, "y": x}
        found[f"lti {kind} forward, first pass"] = lti_kernels.forward, forward | {"scratch": None, "y": None}
        reverse = {"decay": f, "weight": f, "mix": x, "skip": f, "lengths": "*i64", "grad_y": x, "carries": f, **every}
        found[f"lti {kind} reverse"] = lti_kernels.reverse, reverse | {"grad_u": x}
        found[f"lti {kind} reverse, first pass"] = lti_kernels.reverse, reverse | {"grad_u": None}
        sums = dict.fromkeys(("states", "carries", "grad_decay", "grad_weight", "grad_mix", "grad_skip"), f)
        found[f"lti {kind} sums"] = lti_kernels.sums, {**inputs, "grad_y": x, **sums, **every}
        joined = {"decay": f, "states": f, "initial": f, "size": "i32", "chunks": "i32", "planes_apart": "i32"}
        found[f"chain {kind}"] = common.chain, joined | {"COMPLEX": is_complex, "REVERSE": True, "BLOCK": 128}
    return found


def measure(kernel: Any, arguments: dict[str, Any], architecture: int) -> Usage:
    """Compiles a kernel for sm_`architecture` and reads the cubin."""
    at = {name: i for i, name in enumerate(kernel.arg_names)}
    typed = {name: a for name, a in arguments.items() if isinstance(a, str)}
    constants = {name: a for name, a in arguments.items() if name not in typed}
    signature = {name: typed.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {(at[name],): [["tt.divisibility", 16]] for name, kind in typed.items() if kind.startswith("*")}
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=common.OPTIONS)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", cubin.name)
        assembly = _tool("nvdisasm", "-c", cubin.name)
    values = [int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL", "SHARED")]  # type: ignore[index]
    return Usage(*values, _largest_loop(assembly))


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def _largest_loop(assembly: str) -> Counter[str]:
    """Opcodes between a label and the last branch back to it, of the innermost loop with the most instructions."""
    labels: dict[str, int] = {}
    loops: dict[int, int] = {}
    opcodes: list[str] = []
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(opcodes)
        if opcode := re.search(r"\*/\s+(?:@!?U?P\d+ )?\s*([A-Z][A-Z0-9_]*)", line):
            opcodes.append(opcode[1])
            target = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if target and target[1] in labels:
                loops[labels[target[1]]] = len(opcodes)
    inner = [
        (end - start, start)
        for start, end in loops.items()
        if not any(start < s and e <= end for s, e in loops.items())
    ]
    start = max(inner, default=(0, 0))[1]
    return Counter(opcodes[start : loops.get(start, 0)])


def main() -> None:
    print(
        f"{'kernel':32} {'types':5} {'sm':>4} {'registers':>9} {'spills':>6} {'shared':>6}",
        " instructions of the inner loop",
    )
    for dtype, architecture in product(TYPES, ARCHITECTURES):
        for name, (kernel, arguments) in configurations(dtype).items():
            used = measure(kernel, arguments, architecture)
            loop = ", ".join(f"{count} {opcode}" for opcode, count in used.loop.most_common(6))
            spills = used.stack + used.local
            line = f"{name:32} {dtype:5} {architecture:4} {used.registers:9} {spills:6} {used.shared:6}"
            print(f"{line}  {used.loop.total()}: {loop}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
