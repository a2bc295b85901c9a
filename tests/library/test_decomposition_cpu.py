"""The native decomposition against torch's in float64: bands, histories and every gradient."""

import pytest
import torch
from torch import Tensor

from msssm.decomposition import MultiScaleDecomposition
from msssm.scan.cpu import decomposition as native
from msssm.scan.cpu.library import library
from tests.support.tolerances import STEP, assert_near

pytestmark = pytest.mark.skipif(library() is None, reason="the native kernels are not built")


def run(layer: MultiScaleDecomposition, x: Tensor, history: tuple[Tensor, ...] | None, lengths: Tensor) -> list[Tensor]:
    """Bands and new history within the lengths, and the gradients of a fixed linear loss of both."""
    leaves = [x.detach().requires_grad_(), *layer.parameters()]
    past = None if history is None else tuple(h.detach().requires_grad_() for h in history)
    bands, last = layer(leaves[0], lengths, past, return_state=True)
    mask = torch.arange(x.shape[1]) < lengths[:, None]
    bands = bands * mask[..., None, None]
    outputs = [bands, *(h for h in last if h.numel())]
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=g).to(y.dtype) for y in outputs]
    loss = sum((y * w).sum() for y, w in zip(outputs, weights, strict=True))
    assert isinstance(loss, Tensor)
    grads = torch.autograd.grad(loss, [*leaves, *(past or ())], materialize_grads=True, allow_unused=True)
    return [y.detach() for y in outputs] + list(grads)


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
    ],
)
def test_equals_torch(levels: int, taps: int, channels: int, length: int, shared: bool, with_history: bool) -> None:
    torch.manual_seed(0)
    layer = MultiScaleDecomposition(channels, levels, taps, shared=shared, backend="cpu")
    truth = MultiScaleDecomposition(channels, levels, taps, shared=shared, backend="torch").double()
    truth.load_state_dict(layer.state_dict())
    x, lengths = torch.randn(3, length, channels), torch.tensor([length, length // 2, 0])
    history = tuple(torch.randn_like(h) for h in layer.initial_state(3)) if with_history else None
    wide = None if history is None else tuple(h.double() for h in history)
    expected = run(truth, x.double(), wide, lengths)
    x[1, length // 2 :] = x[2] = float("nan")  # not read
    for actual, right in zip(run(layer, x, history, lengths), expected, strict=True):
        assert_near(actual, right, STEP[torch.float32])


def test_what_lies_past_a_length_is_the_same_zeros() -> None:
    """A loss that reads it as well has the same derivatives, first and second, as the torch form."""
    torch.manual_seed(0)
    layer, x = MultiScaleDecomposition(3, 2, 3), torch.randn(2, 9, 3)
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        bands = layer.to(dtype)(leaf, torch.tensor([4, 0]))
        first = torch.autograd.grad(bands.pow(3).sum(), leaf, create_graph=True)[0]
        found.append((bands, first, torch.autograd.grad(first.pow(2).sum(), leaf)[0]))
    for actual, right in zip(*found, strict=True):
        assert not right[0, 4:].any()
        assert not right[1].any()
        assert_near(actual, right, STEP[torch.float32])


def test_operator_passes_opcheck() -> None:
    low, high = torch.randn(2, 2, 3, 5).unbind()
    inputs = (torch.randn(2, 9, 5), low, high, torch.randn(2, 6, 5), torch.tensor([9, 4]))
    with_grad = tuple(x.requires_grad_() if x.is_floating_point() else x for x in inputs)
    torch.library.opcheck(native.decomposition, with_grad)


def test_threads_change_nothing() -> None:
    x, taps = torch.randn(9, 400, 64), torch.randn(2, 3, 4, 64)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(native.decomposition(x, taps[0], taps[1], None, None)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
