"""The native decomposition against torch's in float64: bands or their weighted sum, histories and every gradient."""

from typing import Any

import pytest
import torch
from torch import Tensor

from msssm.decomposition import MultiScaleDecomposition
from msssm.scan.csrc.library import library
from msssm.scan.decomposition import cpu as native
from tests.support.tolerances import STEP, assert_near

pytestmark = pytest.mark.skipif(library() is None, reason="the native kernels are not built")


def run(
    layer: MultiScaleDecomposition,
    x: Tensor,
    history: tuple[Tensor, ...] | None,
    lengths: Tensor,
    weights_of_bands: Tensor | None,
) -> list[Tensor]:
    """Bands or their sum and new history within the lengths, and the gradients of a fixed linear loss of both."""
    leaves = [x.detach().requires_grad_(), *layer.parameters()]
    past = None if history is None else tuple(h.detach().requires_grad_() for h in history)
    if weights_of_bands is not None:
        leaves.append(weights_of_bands.detach().to(x.dtype).requires_grad_())
    weighting = None if weights_of_bands is None else leaves[-1]
    y, last = layer(leaves[0], lengths, past, return_state=True, weights=weighting)
    assert y.shape == (x.shape if weighting is not None else (*x.shape[:2], layer.levels + 2, x.shape[2]))
    mask = torch.arange(x.shape[1]) < lengths[:, None]
    y = y * mask.view(*mask.shape, *[1] * (y.ndim - 2))
    outputs = [y, *(h for h in last if h.numel())]
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=g).to(y.dtype) for y in outputs]
    loss = sum((y * w).sum() for y, w in zip(outputs, weights, strict=True))
    assert isinstance(loss, Tensor)
    grads = torch.autograd.grad(loss, [*leaves, *(past or ())], materialize_grads=True, allow_unused=True)
    return [y.detach() for y in outputs] + list(grads)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("with_history", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("levels", "taps", "channels", "length"),
    [
        (0, 4, 3, 5),
        (1, 1, 16, 9),
        (3, 2, 40, 1),
        (3, 4, 16, 63),
        (2, 3, 1, 17),
        (5, 5, 17, 70),
        (3, 4, 128, 33),
        (3, 4, 17, 131),
        (4, 4, 16, 200),
        (8, 2, 19, 600),  # histories longer than a tile
    ],
)
def test_equals_torch(
    levels: int, taps: int, channels: int, length: int, shared: bool, with_history: bool, weighted: bool
) -> None:
    torch.manual_seed(0)
    layer = MultiScaleDecomposition(channels, levels, taps, shared=shared, backend="cpu")
    truth = MultiScaleDecomposition(channels, levels, taps, shared=shared, backend="torch").double()
    truth.load_state_dict(layer.state_dict())
    x, lengths = torch.randn(3, length, channels), torch.tensor([length, length // 2, 0])
    history = tuple(torch.randn_like(h) for h in layer.initial_state(3)) if with_history else None
    wide = None if history is None else tuple(h.double() for h in history)
    weights = torch.randn(levels + 2, channels) if weighted else None
    expected = run(truth, x.double(), wide, lengths, weights)
    x[1, length // 2 :] = x[2] = float("nan")  # not read
    for actual, right in zip(run(layer, x, history, lengths, weights), expected, strict=True):
        assert_near(actual, right, STEP[torch.float32])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("taps", "length"), [(4, 1), (4, 9), (2, 32), (5, 40), (3, 33), (4, 700)])
def test_without_the_histories_nothing_else_changes(taps: int, length: int, weighted: bool) -> None:
    """Bit for bit, although taps that reach back beyond the first step are left out then."""
    torch.manual_seed(0)
    layer, lengths = MultiScaleDecomposition(9, 7, taps, backend="cpu"), torch.tensor([length, length // 2, 0])
    leaves = [torch.randn(3, length, 9), torch.randn(9, 9), *layer.parameters()]
    x, weights = (leaf.requires_grad_() for leaf in leaves[:2])
    wanted = leaves if weighted else [leaves[0], *leaves[2:]]
    results = []
    for return_state in (True, False):
        y = layer(x, lengths, return_state=return_state, weights=weights if weighted else None)
        y = y[0] if return_state else y
        results.append((y, *torch.autograd.grad((y * y).sum(), wanted)))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("weighted", [False, True])
def test_levels_beyond_the_length_see_one_step(weighted: bool) -> None:
    """Eight steps and forty levels, whose histories would be 3e12 steps long and are not formed."""
    torch.manual_seed(0)
    deep = MultiScaleDecomposition(5, 40, 4, shared=True, backend="cpu")
    near = MultiScaleDecomposition(5, 4, 4, shared=True, backend="torch").double()
    near.load_state_dict(deep.state_dict())
    x, weights = torch.randn(2, 8, 5, requires_grad=True), torch.randn(42, 5)
    y = deep(x, weights=weights) if weighted else (deep(x) * weights).sum(2)
    *bands, approximation = near(x.double()).unbind(2)
    for _ in range(4, 40):
        bands.append(near.high[0, 0] * approximation)
        approximation = near.low[0, 0] * approximation
    expected = (torch.stack([*bands, approximation], 2) * weights).sum(2)
    assert_near(y, expected, STEP[torch.float32])
    found = torch.autograd.grad(y.pow(2).sum(), [x, *deep.parameters()])
    for one, right in zip(found, torch.autograd.grad(expected.pow(2).sum(), [x, *near.parameters()]), strict=True):
        assert_near(one, right.double(), STEP[torch.float32])


@pytest.mark.parametrize("weights", [None, torch.randn(4, 3, generator=torch.Generator().manual_seed(2))])
def test_what_lies_past_a_length_is_the_same_zeros(weights: Tensor | None) -> None:
    """A loss that reads it as well has the same derivatives, first and second, as the torch form."""
    torch.manual_seed(0)
    layer, x = MultiScaleDecomposition(3, 2, 3), torch.randn(2, 9, 3)
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        bands = layer.to(dtype)(leaf, torch.tensor([4, 0]), weights=None if weights is None else weights.to(dtype))
        first = torch.autograd.grad(bands.pow(3).sum(), leaf, create_graph=True)[0]
        found.append((bands, first, torch.autograd.grad(first.pow(2).sum(), leaf)[0]))
    for actual, right in zip(*found, strict=True):
        assert not right[0, 4:].any()
        assert not right[1].any()
        assert_near(actual, right, STEP[torch.float32])


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_weights_of_another_shape_are_refused(backend: Any) -> None:
    layer = MultiScaleDecomposition(3, 2, 3, backend=backend)
    with pytest.raises(ValueError, match=r"the weights must be \(S \+ 2, D\) = \(4, 3\), got \(3,\)"):
        layer(torch.randn(1, 5, 3), weights=torch.ones(3))


@pytest.mark.parametrize("return_state", [False, True])
@pytest.mark.parametrize("with_history", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_operator_passes_opcheck(weighted: bool, with_history: bool, return_state: bool) -> None:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, requires_grad=True)

    history, lengths = leaf(2, 6, 5) if with_history else None, torch.tensor([9, 4])
    weights = [leaf(4, 5)] if weighted else []
    given = (leaf(2, 9, 5), leaf(2, 3, 5), leaf(2, 3, 5), *weights, history, lengths, return_state)
    torch.library.opcheck(native.weighted_decomposition if weighted else native.decomposition, given)


def test_threads_change_nothing() -> None:
    x, (low, high), weights = torch.randn(9, 400, 64), torch.randn(2, 3, 4, 64), torch.randn(5, 64)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            bands, _ = native.decomposition(x, low, high, None, None)
            results.append((bands, native.weighted_decomposition(x, low, high, weights, None, None)[0]))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
