"""Decomposition and scan in one native operator: the two one after the other, in torch and in float64."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from msssm import MultiScaleSSM, multiscale
from msssm.scan.csrc.library import library
from msssm.scan.decomposition import cpu as native_decomposition
from msssm.scan.selective import cpu
from msssm.scan.selective.operands import Operands
from tests.support.tolerances import GRADIENT, OUTPUT, assert_near

pytestmark = pytest.mark.skipif(library() is None, reason="the native kernels are not built")
# Channels below and above the lanes, halos longer than a chunk of the scan, taps with and without their own loop.
SHAPES = [(3, 50, 20, 3, 4, 4), (2, 300, 16, 5, 2, 4), (9, 70, 33, 3, 4, 2), (1, 130, 5, 0, 3, 4), (2, 1, 5, 6, 2, 3),
          (2, 220, 4, 6, 1, 5)]  # fmt: skip


def layer_of(shape: tuple[int, ...], **options: Any) -> MultiScaleSSM:
    _, _, channels, levels, states, taps = shape
    torch.manual_seed(0)
    return MultiScaleSSM(channels, levels, taps, states, skip=True, **options)


def random_state(layer: MultiScaleSSM, batch: int) -> multiscale.MultiScaleState:
    conv_state, ssm_state = layer.initial_state(batch)
    return multiscale.MultiScaleState(tuple(map(torch.randn_like, conv_state)), torch.randn_like(ssm_state))


def run(layer: MultiScaleSSM, x: Tensor, lengths: Tensor, state: multiscale.MultiScaleState) -> list[list[Tensor]]:
    """Outputs with both states, and the gradients of a fixed combination of them."""
    conv_state = tuple(h.detach().requires_grad_() for h in state.conv_state)
    leaves = [x.detach().requires_grad_(), state.ssm_state.detach().requires_grad_(), *conv_state]
    y, last = layer(leaves[0], lengths, multiscale.MultiScaleState(conv_state, leaves[1]), return_state=True)
    outputs = [y, last.ssm_state, *last.conv_state]
    generator = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=generator).to(y.dtype)).sum() for y in outputs)
    assert isinstance(loss, Tensor)
    leaves += layer.parameters()
    return [outputs, list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))]


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_two_operators_and_the_reference(shape: tuple[int, ...]) -> None:
    """Outputs to the bit; gradients sum over other pieces of time."""
    batch, length, channels, *_ = shape
    layer = layer_of(shape)
    x, state = torch.randn(batch, length, channels), random_state(layer, batch)
    lengths = torch.arange(length, length - batch, -1).clamp(0)
    with patch.object(native_decomposition, "decomposition", side_effect=AssertionError("there is one operator")):
        outputs, grads = run(layer, x, lengths, state)
    with patch.object(multiscale, "fused_scan", return_value=None):
        expected, near = run(layer, x, lengths, state)
        wide = multiscale.MultiScaleState(tuple(h.double() for h in state.conv_state), state.ssm_state.double())
        exact, true = run(layer.double(), x.double(), lengths, wide)
    for one, other, right in zip(outputs, expected, exact, strict=True):
        assert torch.equal(one, other)
        assert_near(one, right, OUTPUT[torch.float32])
    for one, other, right in zip(grads, near, true, strict=True):
        assert_near(one, other, GRADIENT[torch.float32])
        assert_near(one, right, GRADIENT[torch.float32])


@pytest.mark.parametrize("shape", SHAPES)
def test_without_a_state_nothing_else_changes(shape: tuple[int, ...]) -> None:
    """Neither before nor after: then taps that reach back beyond the first step are left out."""
    batch, length, channels, *_ = shape
    layer, lengths = layer_of(shape), torch.arange(length, length - batch, -1).clamp(0)
    x = torch.randn(batch, length, channels, requires_grad=True)
    leaves = [x, *layer.parameters()]
    expected, _ = layer(x, lengths, return_state=True)
    found = layer(x, lengths)
    assert torch.equal(found, expected)
    grads = (torch.autograd.grad(y.pow(2).sum(), leaves, materialize_grads=True) for y in (found, expected))
    for one, other in zip(*grads, strict=True):
        assert_near(one, other.double(), GRADIENT[torch.float32])


def test_keeps_no_bands() -> None:
    """All that the backward keeps of the operator is as large as x and the projections, not as the bands."""
    layer, x = layer_of((2, 40, 48, 3, 4, 4)), torch.randn(2, 40, 48, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        layer(x)
    assert max(sizes) <= 2 * x.numel()


def test_threads_and_repeats_change_nothing() -> None:
    """Of the operator itself: the products before it are torch's, which some processors split by threads."""
    layer = layer_of((3, 150, 40, 3, 4, 4))
    ssm, filters, state = layer.ssm, layer.decomposition, random_state(layer, 3)
    x, lengths = torch.randn(3, 150, 40), torch.tensor([150, 90, 0])
    low_rank, B, C = ssm.selection(x)
    operands = x, low_rank, ssm.diagonal(), B, C, layer.mixer(x), ssm.skip, ssm.delta_weight, ssm.delta_bias
    taps = *filters.filters(), filters.joined(state.conv_state, x)
    leaves = [each.detach().requires_grad_() for each in (*operands, state.ssm_state, *taps)]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            outputs = cpu.scan(Operands(*leaves[:9], lengths, *leaves[9:]), "zoh")
            results.append([*outputs, *torch.autograd.grad(outputs, leaves, list(map(torch.ones_like, outputs)))])
    finally:
        torch.set_num_threads(threads)
    assert len(results[0]) == 3 + 13
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_padding_is_not_read() -> None:
    layer, x, lengths = layer_of((2, 50, 20, 3, 4, 4)), torch.randn(2, 50, 20), torch.tensor([50, 17])
    spoilt = x.clone()
    spoilt[1, 17:] = float("nan")
    found = [run(layer, each, lengths, layer.initial_state(2)) for each in (x, spoilt)]
    assert all(torch.equal(a, b) for one, other in zip(*found, strict=True) for a, b in zip(one, other, strict=True))


def test_second_derivatives_are_those_of_torch() -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        layer = layer_of((2, 9, 3, 2, 2, 3)).to(dtype)
        x = torch.linspace(-1, 1, 2 * 9 * 3).reshape(2, 9, 3).to(dtype).requires_grad_()
        (first,) = torch.autograd.grad(layer(x, torch.tensor([9, 4])).pow(2).sum(), x, create_graph=True)
        found.append((first, *torch.autograd.grad(first.pow(2).sum(), [x, *layer.parameters()])))
    for actual, right in zip(*found, strict=True):
        assert_near(actual, right, GRADIENT[torch.float32])


def test_hooks_see_the_modules() -> None:
    layer, seen = layer_of((2, 9, 3, 2, 2, 3)), []
    x = torch.randn(2, 9, 3)
    expected = layer(x)
    for module in (layer.decomposition, layer.ssm):
        module.register_forward_hook(lambda *arguments: seen.append(arguments[0]))
    assert torch.equal(layer(x), expected)
    assert seen == [layer.decomposition, layer.ssm]


def test_operator_passes_opcheck() -> None:
    layer = layer_of((2, 9, 5, 2, 3, 3))
    operator = cpu._selective
    with patch.object(cpu, "_selective", wraps=operator) as called:
        layer(torch.randn(2, 9, 5), torch.tensor([9, 4]), random_state(layer, 2))
    torch.library.opcheck(
        operator,
        tuple(
            x.detach().requires_grad_(x.is_floating_point()) if isinstance(x, Tensor) else x
            for x in called.call_args.args
        ),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic"),
    )
