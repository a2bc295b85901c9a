"""The scans on a real GPU against the sequential reference in float64: `make test-gpu`; skipped where there is none."""

import pytest
import torch

from msssm.scan import Discretization
from msssm.scan.selective.check import fault
from tests.support.scan_cases import (
    Arguments,
    assert_all_near,
    selective_arguments,
    selective_results,
    selective_truth,
    triton_scan,
)
from tests.support.tolerances import KERNEL_OUTPUT, assert_near

common = pytest.importorskip("msssm.scan.selective.triton_common", reason="Triton exists for Linux alone")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

SHAPES = [  # (B, L, M, D, N, H)
    (2, 1, 1, 1, 1, 1),
    (1, 2, 2, 3, 4, 3),
    (2, 3, 5, 16, 1, 2),
    (3, 17, 3, 40, 16, 1),
    (2, 63, 1, 40, 25, 40),
    (2, 372, 5, 96, 16, 2),
    (1, 4096, 2, 48, 16, 1),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DISCRETIZATIONS: list[Discretization] = ["zoh", "euler"]


def on_gpu(given: Arguments) -> Arguments:
    return {name: None if x is None else x.cuda() for name, x in given.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_selective_scan(shape: tuple[int, ...], discretization: Discretization, dtype: torch.dtype) -> None:
    given = on_gpu(selective_arguments(shape, dtype))
    assert_all_near(selective_results(given, discretization), selective_truth(given, discretization))


@pytest.mark.parametrize("chunks", [1, 4, 16])
def test_padded_rows_with_steps_from_softplus(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = 3 * 2  # rows, channel blocks
    monkeypatch.setattr(common, "warps_wanted", lambda device: chunks * programs)
    given = on_gpu(selective_arguments((3, 1024, 2, 40, 16, 2), lengths=[1024, 700, 0], bias=True))
    truth = selective_truth(given, "zoh")
    for name in ("u", "delta", "B", "C", "mix"):
        given[name][1, 700:] = given[name][2] = torch.nan  # type: ignore[index]
    assert_all_near(selective_results(given, "zoh"), truth)


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
def test_two_runs_are_bit_equal(discretization: Discretization) -> None:
    given = on_gpu(selective_arguments((8, 1000, 5, 128, 16, 4), torch.bfloat16))
    first, second = (selective_results(given, discretization) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_chunks_change_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given = on_gpu(selective_arguments((1, 16384, 1, 64, 16, 1), step=0.02))
    results = []
    for warps in (1, 10**6):
        monkeypatch.setattr(common, "warps_wanted", lambda device, warps=warps: warps)
        results.append(selective_results(given, "zoh"))
    assert_all_near(results[0], {name: x.double() for name, x in results[1].items()})


def test_the_check_that_decides_on_the_backend_passes() -> None:
    assert fault(torch.device("cuda", 0)) is None


def test_offsets_beyond_32_bits() -> None:
    """u has more than 2^31 elements; its last channels and steps equal those of a scan of them alone."""
    batch, length, channels, states = 1, 2**17 + 64, 2**14 + 32, 1
    if torch.cuda.get_device_properties(0).total_memory < 48 * 2**30:
        pytest.skip("needs 48 GB of GPU memory")

    def tensor(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=torch.bfloat16, device="cuda")

    u = torch.zeros(batch, length, 1, channels, dtype=torch.bfloat16, device="cuda")
    u[:, -64:, :, -32:] = torch.randn(1, 64, 1, 32, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    delta = torch.full_like(u, 0.125)
    B, mix = tensor(batch, length, 1, states), tensor(batch, length, 1, 1)
    A = -torch.ones(1, channels, states, device="cuda")
    rest: Arguments = dict.fromkeys(("D", "delta_bias", "lengths", "initial_state"))
    y, _ = triton_scan("zoh", u=u, delta=delta, A=A, B=B, C=B, mix=mix, **rest)
    tail = [x[:, -64:, :, -32:].contiguous() if x.shape[-1] == channels else x[:, -64:] for x in (u, delta, B, mix)]
    expected, _ = triton_scan("zoh", u=tail[0], delta=tail[1], A=A[:, -32:], B=tail[2], C=tail[2], mix=tail[3], **rest)
    assert expected.abs().max() > 0
    assert_near(y[:, -64:, -32:], expected, KERNEL_OUTPUT[torch.bfloat16])
