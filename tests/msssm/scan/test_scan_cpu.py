"""The native CPU scan against the sequential reference in float64, in every variant that this machine can run."""

import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from msssm import MultiScaleSSM
from msssm.scan import Discretization, dispatch, multiscale_scan, selective_scan
from msssm.scan.csrc import library as cpu
from msssm.scan.selective import cpu as selective
from tests.support.tolerances import KERNEL_GRADIENT, KERNEL_OUTPUT, STEP, assert_near

SHAPES = [  # (B, L, M, D, N, H)
    (1, 1, 1, 1, 1, 1),
    (2, 2, 2, 3, 1, 3),
    (3, 3, 5, 16, 4, 1),
    (2, 17, 3, 5, 3, 1),
    (1, 63, 2, 40, 16, 2),
    (2, 372, 1, 16, 25, 4),
    (9, 33, 5, 64, 4, 1),
    (1, 784, 5, 40, 4, 1),
    (1, 1000, 1, 3, 128, 1),
    (2, 1134, 2, 16, 4, 16),
    (1, 2048, 2, 128, 1, 128),
]
BUILT = ["baseline", "avx2", "avx512"]
CAPABLE = {"DEFAULT": BUILT[:1], "AVX2": BUILT[:2], "AVX512": BUILT}

pytestmark = pytest.mark.skipif(
    cpu.library() is None, reason="no C++ compiler at install: the native scan is not built"
)


@pytest.fixture(params=BUILT)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One of the built libraries in place of the one that this processor would get."""
    spec = importlib.util.find_spec(f"msssm.scan.csrc.{request.param}")
    capable = CAPABLE.get(torch.backends.cpu.get_cpu_capability(), BUILT[:1])
    if spec is None or request.param not in capable:
        pytest.skip(f"{request.param} is not built, or this processor lacks it")
    monkeypatch.setattr(cpu, "_VARIANTS", {torch.backends.cpu.get_cpu_capability(): (request.param,)})
    cpu._found.cache_clear()
    yield request.param
    cpu._found.cache_clear()


def arguments(shape: tuple[int, ...]) -> list[Tensor]:
    """bands, delta, A, B, C, mix, D, delta_bias, initial state."""
    batch, length, bands, channels, states, heads = shape
    g = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g)

    return [
        normal(batch, length, bands, channels),
        torch.rand(batch, length, bands, channels, generator=g) * 0.2,
        -torch.rand(bands, channels, states, generator=g) * 20 - 0.5,
        normal(batch, length, bands, states),
        normal(batch, length, bands, states),
        normal(batch, length, bands, heads),
        normal(bands, channels),
        normal(bands, channels) - 1,
        normal(batch, bands, channels, states),
    ]


def run(
    tensors: list[Tensor],
    discretization: Discretization,
    backend: Any,
    lengths: Tensor | None = None,
    bias: bool = False,
) -> list[Tensor]:
    """y, the last state, and the gradients of a fixed linear loss; delta goes through the softplus with `bias`."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    if not bias:
        del leaves[7]
    y, state = multiscale_scan(
        *leaves[:7],
        delta_bias=leaves[7] if bias else None,
        lengths=lengths,
        initial_state=leaves[-1],
        return_state=True,
        discretization=discretization,
        backend=backend,
    )
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=g).to(x.dtype) for x in (y, state)]
    return [y.detach(), state.detach(), *torch.autograd.grad([y, state], leaves, weights)]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("discretization", ["zoh", "euler"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_equal_the_reference(
    variant: str, shape: tuple[int, ...], discretization: Discretization
) -> None:
    tensors = arguments(shape)
    expected = run([x.double() for x in tensors], discretization, "reference")
    actual = run(tensors, discretization, "cpu")
    errors = [relative_error(a, e) for a, e in zip(actual, expected, strict=True)]
    assert max(errors[:2]) < KERNEL_OUTPUT[torch.float32]
    assert max(errors[2:]) < KERNEL_GRADIENT[torch.float32], errors


@pytest.mark.parametrize("discretization", ["zoh", "euler"])
@pytest.mark.parametrize("shape", [(3, 17, 2, 5, 3, 1), (4, 130, 5, 40, 4, 2)], ids=str)
def test_softplus_and_lengths_equal_the_reference(
    variant: str, shape: tuple[int, ...], discretization: Discretization
) -> None:
    """Rows of length 0, of the whole, and between; NaN past a row's end is not read."""
    tensors = arguments(shape)
    tensors[1] = torch.randn(tensors[1].shape, generator=torch.Generator().manual_seed(3)) * 4
    lengths = torch.tensor([0, shape[1], shape[1] // 2, 1][: shape[0]])
    expected = run([x.double() for x in tensors], discretization, "reference", lengths, bias=True)
    for row, length in enumerate(lengths):
        for index in (0, 1, 3, 4, 5):
            tensors[index][row, length:] = float("nan")
    actual = run(tensors, discretization, "cpu", lengths, bias=True)
    errors = [relative_error(a, e) for a, e in zip(actual, expected, strict=True)]
    assert max(errors[:2]) < KERNEL_OUTPUT[torch.float32], errors
    assert max(errors[2:]) < KERNEL_GRADIENT[torch.float32], errors


@pytest.mark.parametrize("shape", [(3, 17, 2, 5, 3, 1), (9, 70, 5, 40, 4, 2), (1, 130, 3, 64, 16, 1)], ids=str)
@pytest.mark.parametrize("rank", [1, 3])
def test_step_sizes_of_low_rank_equal_the_reference(variant: str, shape: tuple[int, ...], rank: int) -> None:
    """Formed inside the tiles of a scan, from slices of one projection; their gradients sum over the channels."""
    batch, length, bands, channels, states, _ = shape
    u, _, A, B, C, mix, D, bias, state = arguments(shape)
    g = torch.Generator().manual_seed(5)
    gates = torch.cat((torch.randn(batch, length, bands, rank, generator=g), B, C), -1)
    weight, lengths = torch.randn(bands, rank, channels, generator=g), torch.arange(batch) * length // batch + 1

    def both(dtype: torch.dtype, backend: Any) -> list[Tensor]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in (u, gates, A, mix, D, weight, bias, state)]
        low_rank, B, C = leaves[1].split((rank, states, states), -1)
        y, last = multiscale_scan(
            leaves[0], low_rank, leaves[2], B, C, leaves[3], leaves[4], delta_weight=leaves[5], delta_bias=leaves[6],
            lengths=lengths, initial_state=leaves[7], return_state=True, backend=backend,
        )  # fmt: skip
        return [y, last, *torch.autograd.grad((y.sum(), last.square().sum()), leaves)]

    errors = [
        relative_error(a, e) for a, e in zip(both(torch.float32, "cpu"), both(torch.float64, "reference"), strict=True)
    ]
    assert max(errors[:2]) < KERNEL_OUTPUT[torch.float32], errors
    assert max(errors[2:]) < KERNEL_GRADIENT[torch.float32], errors


def test_strided_inputs_need_no_copy_and_change_nothing() -> None:
    """Bands outermost, as a matrix product per band leaves them, and slices of one projection."""
    tensors = arguments((3, 40, 2, 16, 4, 1))
    expected = run(tensors, "zoh", "cpu")
    bands_first = [tensors[i].permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for i in (0, 1)]
    both = torch.cat((tensors[3], tensors[4]), dim=-1)
    strided = [*bands_first, tensors[2], both[..., :4], both[..., 4:], *tensors[5:]]
    assert all(torch.equal(a, b) for a, b in zip(run(strided, "zoh", "cpu"), expected, strict=True))


@pytest.mark.parametrize("scale", [1e-7, 1e-4, 1e-2, 1.0, 88.0, 1e4])
def test_outputs_are_accurate_at_any_step_size(variant: str, scale: float) -> None:
    """|delta A| from 1e-7, where exp(x) - 1 would cancel, to 1e4, where the decay underflows."""
    tensors = arguments((1, 33, 1, 16, 4, 1))
    tensors[1] = torch.full_like(tensors[1], scale)
    tensors[2] = -torch.linspace(0.5, 1, tensors[2].numel()).view_as(tensors[2])
    tensors[-1] = torch.zeros_like(tensors[-1])
    expected = run([x.double() for x in tensors], "zoh", "reference")
    actual = run(tensors, "zoh", "cpu")
    assert (
        max(relative_error(a, e) for a, e in zip(actual[:2], expected[:2], strict=True)) < KERNEL_OUTPUT[torch.float32]
    )
    assert all(torch.isfinite(x).all() for x in actual)


def test_a_step_of_zero_leaves_the_state(variant: str) -> None:
    tensors = arguments((2, 5, 2, 3, 4, 1))
    tensors[1] = torch.zeros_like(tensors[1])
    assert torch.equal(run(tensors, "zoh", "cpu")[1], tensors[-1])


def test_repeats_and_thread_counts_are_bit_equal() -> None:
    """No atomics on values: what a sum adds, and in which order, is fixed."""
    tensors = arguments((3, 200, 2, 100, 16, 1))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(run(tensors, "zoh", "cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nan_is_not_swallowed(variant: str) -> None:
    """A NaN in any argument reaches the output."""
    for index in range(6):
        tensors = arguments((1, 4, 1, 16, 2, 1))
        tensors[index].view(-1)[0] = float("nan")
        assert run(tensors, "zoh", "cpu")[0].isnan().any(), index


def test_operators_pass_opcheck() -> None:
    """Schema, fake implementation and autograd registration, as torch.compile and torch.export need them."""
    bands, delta, A, B, C, mix, D, bias, state = arguments((2, 5, 2, 3, 4, 1))
    lengths = torch.tensor([5, 2])
    rates, start = A.transpose(1, 2).contiguous(), state.transpose(2, 3).contiguous()
    weight = torch.randn(2, 1, 3)
    no_filters = (None, None, None)
    full = (bands, delta[..., :1], rates, B, C, mix, D, weight, bias, lengths, start, *no_filters, True, True, True)
    least = (bands, delta, rates, B, C, mix, None, None, None, None, None, *no_filters, False, False, True)
    torch.library.opcheck(selective._selective, least, test_utils=("test_schema", "test_faketensor"))
    with_grad = tuple(x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in full)
    torch.library.opcheck(
        selective._selective,
        with_grad,
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic"),
    )


def test_export_goes_through_the_operator() -> None:
    layer = MultiScaleSSM(8, state_size=4).eval()
    x = torch.randn(2, 12, 8)
    program = torch.export.export(layer, (x,))
    modules = [module for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    assert any(node.target is torch.ops.msssm.selective.default for module in modules for node in module.graph.nodes)
    assert_near(program.module()(x), layer(x), STEP[torch.float32])


def test_layer_is_the_same_on_both_backends() -> None:
    torch.manual_seed(0)
    native = MultiScaleSSM(24, state_size=5, mixer_heads=3, skip=True, backend="cpu")
    plain = MultiScaleSSM(24, state_size=5, mixer_heads=3, skip=True, backend="torch")
    plain.load_state_dict(native.state_dict())
    x, lengths = torch.randn(3, 40, 24), torch.tensor([40, 7, 23])
    (y, (_, state)), (expected, (_, expected_state)) = (m(x, lengths, return_state=True) for m in (native, plain))
    assert_near(y, expected, STEP[torch.float32])
    assert_near(state, expected_state, STEP[torch.float32])


def test_an_explicit_backend_that_cannot_run_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [x.double() for x in arguments((1, 2, 1, 3, 2, 1))]
    with pytest.raises(ValueError, match=r"needs float32 tensors on a CPU, got torch\.float64 on cpu"):
        multiscale_scan(*tensors[:6], backend="cpu")
    monkeypatch.setattr(dispatch.library, "obstacle", lambda: dispatch.library.NOT_BUILT)
    with pytest.raises(ValueError, match="is not built: install a C\\+\\+ compiler"):
        multiscale_scan(*arguments((1, 2, 1, 3, 2, 1))[:6], backend="cpu")


def test_auto_says_once_that_it_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.library, "obstacle", lambda: dispatch.library.NOT_BUILT)
    monkeypatch.delenv("MSSSM_BACKEND", raising=False)
    dispatch._warn_once.cache_clear()
    tensors = arguments((1, 2, 1, 3, 2, 1))[:6]
    with pytest.warns(UserWarning, match=r"plain torch.*install a C\+\+ compiler"):
        multiscale_scan(*tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        multiscale_scan(*tensors)


def test_environment_overrides_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> str:
        raise AssertionError("the native library was asked for")

    monkeypatch.setenv("MSSSM_BACKEND", "torch")
    monkeypatch.setattr(dispatch.library, "obstacle", forbidden)
    u, delta, A, B, C = (x.squeeze(2) for x in arguments((1, 4, 1, 3, 2, 1))[:5])
    selective_scan(u, delta, A[0], B, C)
    monkeypatch.setenv("MSSSM_BACKEND", "fast")
    with pytest.raises(ValueError, match="backend must be one of auto, reference, torch, cpu, triton, got 'fast'"):
        selective_scan(u, delta, A[0], B, C)
