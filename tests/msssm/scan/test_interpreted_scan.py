"""The GPU kernels under Triton's interpreter, on the CPU, in a process of its own.

The interpreter checks values, not types, races or compilation: test_scan_cubin.py and test_scan_gpu.py do. It truncates
where a GPU rounds to bfloat16.
"""

from typing import Any

import pytest
import torch

from msssm.errors import InputError
from msssm.scan import Discretization, multiscale_scan
from msssm.scan.selective import check, triton
from msssm.scan.selective import triton_common as common
from msssm.scan.selective.operands import Operands
from tests.support.scan_cases import (
    assert_all_near,
    selective_arguments,
    selective_results,
    selective_truth,
    triton_scan,
)
from tests.support.tolerances import FLOAT32, METRIC, assert_near

pytestmark = pytest.mark.interpreted

SHAPES = [  # (B, L, M, D, N, H)
    (2, 1, 2, 3, 4, 3),
    (1, 2, 1, 1, 1, 1),
    (2, 3, 5, 16, 1, 2),
    (1, 17, 3, 40, 16, 1),
    (1, 70, 1, 3, 25, 1),
]
DISCRETIZATIONS: list[Discretization] = ["zoh", "euler"]
HALVES = [torch.bfloat16, torch.float16]
LONG = (2, 200, 1, 3, 4, 1)  # four tiles


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many chunks as tiles."""
    monkeypatch.setattr(common, "warps_wanted", lambda device: 10**6)
    assert common.cut(1, LONG[1], torch.device("cpu")) == (4, 64)


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_selective_scan(shape: tuple[int, ...], discretization: Discretization) -> None:
    given = selective_arguments(shape)
    assert_all_near(selective_results(given, discretization), selective_truth(given, discretization))


def test_selective_scan_of_few_steps() -> None:
    """Fewer than are loaded ahead, one more, and rows that end in between."""
    for length in {1, 2, common.AHEAD - 1, common.AHEAD + 1}:
        given = selective_arguments((1, length, 2, 3, 2, 1))
        assert_all_near(selective_results(given, "euler"), selective_truth(given, "euler"))
    given = selective_arguments((3, 6, 1, 33, 2, 1), lengths=[common.AHEAD + 1, 1, 0], bias=True)
    truth = selective_truth(given, "euler")
    for name in ("u", "delta", "B", "C", "mix"):
        given[name][1, 1:] = given[name][2] = torch.nan  # type: ignore[index]
    assert_all_near(selective_results(given, "euler"), truth)


def test_no_steps_leave_the_state_and_hand_its_gradient_through() -> None:
    given = selective_arguments((2, 0, 2, 3, 4, 1))
    results = selective_results(given, "zoh")
    assert results["y"].shape == (2, 0, 3)
    assert torch.equal(results["state"], given["initial_state"])  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(99)
    assert torch.equal(results["initial_state"], torch.randn(2, 2, 3, 4, generator=generator))
    assert not results["D"].any()


def test_weights_are_read_in_words_at_addresses_of_words() -> None:
    from msssm.scan.selective.triton import _words

    odd = torch.arange(9, dtype=torch.bfloat16)[1:]
    assert odd.data_ptr() % 4 == 2
    assert _words(odd).data_ptr() % 4 == 0
    assert torch.equal(_words(odd), odd)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("states", [16, 3])  # in pairs, and one by one
def test_selective_scan_of_half_precision(states: int, dtype: torch.dtype) -> None:
    """States, decays and sums in float32: only what is stored in half precision is rounded."""
    given = selective_arguments((1, 9, 2, 5, states, 1), dtype)
    results = selective_results(given, "zoh")
    assert {name for name, x in results.items() if x.dtype == dtype} == {"y", "u", "delta", "B", "C", "mix"}
    assert_all_near(results, selective_truth(given, "zoh"))


def test_selective_scan_of_padded_rows_with_steps_from_softplus() -> None:
    """Nothing past a row's length is read, and it gets no gradient."""
    given = selective_arguments((3, 17, 2, 5, 4, 1), lengths=[17, 5, 0], bias=True)
    truth = selective_truth(given, "zoh")
    for name in ("u", "delta", "B", "C", "mix"):
        given[name][1, 5:] = given[name][2] = torch.nan  # type: ignore[index]
    results = selective_results(given, "zoh")
    assert_all_near(results, truth)
    for name in ("y", "u", "delta", "B", "C", "mix"):
        assert not results[name][1, 5:].any()
        assert not results[name][2].any()


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize(
    ("discretization", "lengths"), [("zoh", [200, 130]), pytest.param("euler", [200, 5], marks=pytest.mark.slow)]
)
def test_selective_scan_in_chunks(discretization: Discretization, lengths: list[int]) -> None:
    """The decays differ from step to step: chunks combined in the wrong order would show."""
    given = selective_arguments(LONG, step=0.03, lengths=lengths)
    assert_all_near(selective_results(given, discretization), selective_truth(given, discretization))


@pytest.mark.slow
def test_selective_scan_over_several_checkpoints_repeats_bit_by_bit() -> None:
    given = selective_arguments((1, 130, 1, 3, 4, 1), step=0.03)
    first, second = (selective_results(given, "zoh") for _ in range(2))
    assert_all_near(first, selective_truth(given, "zoh"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("step", [1e-7, 1e-4, 10.0, 1e6])
def test_gain_and_its_gradients_at_any_step_size(step: float) -> None:
    """expm1(step A) / A written as (exp(step A) - 1) / A would be wrong by eps / (step |A|)."""
    given = selective_arguments((1, 5, 1, 32, 4, 1), step=step)
    given["initial_state"], given["D"] = None, None
    results, truth = selective_results(given, "zoh"), selective_truth(given, "zoh")
    # Once the step exceeds what decays take, its gradient is below float32's range.
    for name in ("y", "state", "u", "B", "C", "mix") if step == 1e6 else ("y", "state", "u", "delta", "B", "C", "mix"):
        assert_near(results[name], truth[name], METRIC)


def test_step_size_is_softplus_at_every_argument() -> None:
    """With A = -1, B = u = 1 and no past, the state after one Euler step is the step size."""
    z = torch.cat((torch.linspace(-30, 30, 241), torch.tensor([-100.0, 100.0, 1e5, 3e6])))
    channels = len(z)
    one, ones = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, channels)
    leaf = z.view(1, 1, 1, channels).clone().requires_grad_()
    _, state = triton.scan(
        Operands(ones, leaf, -torch.ones(1, channels, 1), one, one, one, delta_bias=torch.zeros(1, channels)), "euler"
    )
    wide = z.double().requires_grad_()
    expected = torch.nn.functional.softplus(wide, threshold=40).clamp(1e-4, 1e6)
    torch.testing.assert_close(state.flatten().double(), expected, rtol=METRIC, atol=0)
    (grad,) = torch.autograd.grad(state.sum(), leaf)
    (expected_grad,) = torch.autograd.grad(expected.sum(), wide)
    torch.testing.assert_close(grad.flatten().double(), expected_grad, rtol=METRIC, atol=0)


@pytest.mark.parametrize("discretization", DISCRETIZATIONS)
def test_a_step_of_zero_leaves_the_state(discretization: Discretization) -> None:
    given = selective_arguments((1, 3, 2, 5, 4, 1), step=0.0)
    _, state = triton_scan(discretization, **given)
    assert torch.equal(state, given["initial_state"])  # type: ignore[arg-type]


def test_kernels_read_any_layout_and_refuse_what_they_would_misread() -> None:
    given = selective_arguments((2, 9, 2, 3, 4, 1), lengths=[9, 4], bias=True)
    expected = selective_results(given, "zoh")

    def turned(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(0, -1).contiguous().transpose(0, -1)

    results = selective_results({name: x if x is None else turned(x) for name, x in given.items()}, "zoh")
    assert all(torch.equal(results[name], x) for name, x in expected.items())
    results = selective_results(given | {"lengths": torch.tensor([[9, 7], [4, 7]])[:, 0]}, "zoh")
    assert all(torch.equal(results[name], x) for name, x in expected.items())
    for name, x in {
        "B": given["B"].double(),  # type: ignore[union-attr]
        "A": given["A"].half(),  # type: ignore[union-attr]
        "lengths": torch.tensor([9, 4], dtype=torch.int32),
        "D": given["D"][:1],  # type: ignore[index]
    }.items():
        with pytest.raises(InputError, match=r"a kernel takes torch"):
            triton_scan("zoh", **given | {name: x})


def test_kernels_stay_within_lengths_that_lie_outside() -> None:
    given = selective_arguments((2, 9, 1, 3, 4, 1), lengths=[9, 0])
    outside = given | {"lengths": torch.tensor([10**9, -(10**9)])}
    expected = selective_results(given, "zoh")
    assert all(torch.equal(x, expected[name]) for name, x in selective_results(outside, "zoh").items())


def test_second_derivatives_are_those_of_the_torch_form() -> None:
    given = selective_arguments((1, 4, 2, 3, 2, 1))
    u = given.pop("u")
    assert u is not None

    def reference(discretization: Discretization, u: torch.Tensor, **given: Any) -> Any:
        return multiscale_scan(u, **given, return_state=True, discretization=discretization, backend="reference")

    found = []
    for scan in (triton_scan, reference):
        leaf = u.clone().requires_grad_()
        y, state = scan("zoh", u=leaf, **given)
        (first,) = torch.autograd.grad(y.pow(2).sum() + state.pow(2).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), leaf)
        found.append((first.detach(), second))
    for x, y in zip(*found, strict=True):
        assert_near(x, y, FLOAT32)


def test_the_scan_compiles_without_graph_breaks() -> None:
    given = selective_arguments((1, 5, 2, 3, 4, 1))
    compiled = torch.compile(triton_scan, backend="aot_eager", fullgraph=True)
    for one, other in zip(compiled("zoh", **given), triton_scan("zoh", **given), strict=True):
        assert torch.equal(one, other)


def test_the_operator_keeps_its_contract() -> None:
    """Fake results have the shapes, strides and dtypes of the real ones; autograd is registered as it should be."""
    u, mix = torch.randn(1, 5, 2, 3, requires_grad=True), torch.randn(1, 5, 2, 1)
    A, B = -torch.rand(2, 4, 3), torch.randn(1, 5, 2, 4)
    operands = Operands(u, torch.rand(1, 5, 2, 3), A, B, B, mix, state=torch.randn(1, 2, 4, 3))
    chosen = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(triton._selective, (*operands, True, True), test_utils=chosen)


@pytest.mark.parametrize(
    "spoilt", ["the gradient of B", *(pytest.param(x, marks=pytest.mark.slow) for x in ("y", "raises"))]
)
def test_a_fault_is_found_and_named(spoilt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check._known.clear()
    right = triton.scan

    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return 1.001 * grad

    def wrong(operands: Operands, discretization: str) -> tuple[torch.Tensor, torch.Tensor]:
        if spoilt == "raises":
            raise RuntimeError("PassManager::run failed\nmore")
        y, last = right(operands._replace(B=Spoilt.apply(operands.B)) if "B" in spoilt else operands, discretization)
        return y * 1.001 if spoilt == "y" else y, last

    monkeypatch.setattr(triton, "scan", wrong)
    found = check.fault(torch.device("cpu"))
    check._known.clear()
    assert found is not None
    assert ("RuntimeError: PassManager::run failed;" if spoilt == "raises" else f"{spoilt} is off by 1.0e-03") in found


@pytest.mark.slow
def test_right_kernels_pass_their_check_in_any_mode_of_the_caller() -> None:
    check._known.clear()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert check.fault(torch.device("cpu")) is None
