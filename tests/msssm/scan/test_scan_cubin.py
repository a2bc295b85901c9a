"""The GPU kernels compiled ahead of time: no GPU is needed, Triton's own tools read the cubins."""

import platform
import re
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="Triton exists for Linux alone")

TYPES, ARCHITECTURES = ("fp32", "bf16", "fp16"), (80, 90, 100)
# States of a band and number of bands: what the layers use by default, and what is padded, or more than a block.
DEFAULT, OTHERS = (16, 5), [(16, 1), (1, 2), (4, 5), (25, 2), (64, 1)]
STATES = DEFAULT[0]


def usages(dtype: str, architecture: int, states: int, bands: int) -> dict[str, Any]:
    from benchmarks.cubins import launches, measure

    kernels = launches(dtype, states, bands)
    return {name: measure(*kernel, architecture) for name, kernel in kernels.items()}


def assert_nothing_spills(used: dict[str, Any]) -> None:
    for name, usage in used.items():
        assert usage.stack + usage.local == 0, f"{name}: {usage.stack + usage.local} bytes spill"
        # Eight warps fill a multiprocessor's registers; they may have the shared memory of the smallest, too.
        assert usage.registers <= 255, name
        assert usage.shared <= 8192, f"{name}: {usage.shared} bytes of shared memory"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_spills(architecture: int) -> None:
    assert_nothing_spills(usages("bf16", architecture, *DEFAULT))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", TYPES)
def test_nothing_spills_in_any_type(dtype: str, architecture: int) -> None:
    assert_nothing_spills(usages(dtype, architecture, *DEFAULT))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["forward euler", "forward zoh"])
def test_a_load_is_read_no_sooner_than_a_step_after_it_is_issued(name: str, dtype: str) -> None:
    """Read back from the SASS: three quarters of a step's instructions at least stand between them."""
    from benchmarks.cubins import launches, measure
    from msssm.scan.selective.triton_common import AHEAD

    loop = max(measure(*launches(dtype)[name], 90).loops, key=lambda loop: len(loop.instructions))
    step = len(loop.instructions) / AHEAD
    assert min(loop.leads()) >= 0.75 * step


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "loop"), [("add parts", "no loop"), ("chain", r"\d+: \d+ [A-Z]+, .*")])
def test_a_kernel_has_a_line_with_or_without_a_loop(name: str, loop: str) -> None:
    from benchmarks.cubins import launches, measure

    assert re.fullmatch(rf" +\d+ +0 +\d+  {loop}", measure(*launches("fp32")[name], 90).line)


@pytest.mark.parametrize("kind", ["zoh", "euler"])
def test_the_backward_loads_a_block_of_steps_ahead(kind: str) -> None:
    """All but the states of its own slots, four words of 128 bits, which it finds in the cache."""
    from benchmarks.cubins import launches, measure

    sweep, back = measure(*launches("bf16")[f"backward {kind}"], 90).loops
    assert min(sweep.leads()) >= len(sweep.instructions) / 2
    assert len(back.leads(r"LDG\.E\.128")) == 4
    assert min(back.leads(r"LDG\.E(?!\.128)")) >= len(back.instructions) / 2


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("states", "bands"), OTHERS)
def test_nothing_spills_for_other_sizes(states: int, bands: int, dtype: str, architecture: int) -> None:
    assert_nothing_spills(usages(dtype, architecture, states, bands))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("kind", "arithmetic"), [("zoh", 12.5), ("euler", 5.5)])
def test_the_forward_loop_holds_one_exponential_and_no_exchange_between_lanes(
    kind: str, arithmetic: float, dtype: str
) -> None:
    """Instructions of one step on sm_90, per state: 1 MUFU (and 1 a step for softplus), and few on the FMA pipes."""
    from benchmarks.cubins import launches, measure
    from msssm.scan.selective.triton_common import AHEAD

    loop = measure(*launches(dtype)[f"forward {kind}"], 90).loop
    assert loop["MUFU"] == AHEAD * (STATES + 1)
    assert sum(loop[opcode] for opcode in ("FFMA", "FMUL", "FADD")) <= AHEAD * arithmetic * STATES
    assert not {"SHFL", "BAR", "STS", "LDS", "LDL", "STL"} & set(loop)


@pytest.mark.parametrize("kind", ["zoh", "euler"])
def test_the_backward_reduces_over_channels_with_few_shuffles(kind: str) -> None:
    """Sums over 32 channels of B's and C's gradients, one state at a time, would take 10 shuffles per state."""
    from benchmarks.cubins import launches, measure

    _sweep, back = measure(*launches("bf16")[f"backward {kind}"], 90).loops
    loop = back.opcodes
    block = 1 if kind == "zoh" else 2
    assert 0 < loop["SHFL"] <= 4 * STATES * block
    assert not {"LDL", "STL"} & set(loop)
