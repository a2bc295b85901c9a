"""Masks, means and norms over the true positions: as if each row had been given alone."""

import pytest
import torch
from torch import Tensor

from msssm.norm import SequenceNorm
from msssm.padding import last_positions, mask_padding, masked_mean, position_mask
from tests.support.tolerances import GRADIENT, OUTPUT, assert_near

LENGTHS = [7, 4, 1, 0]
POISONS = [float("nan"), float("inf"), -1e30]


def padded(poison: float) -> tuple[Tensor, Tensor]:
    x = torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        x[row, length:] = poison
    return x, torch.tensor(LENGTHS)


def true_positions(x: Tensor) -> Tensor:
    return torch.cat([x[row, :length] for row, length in enumerate(LENGTHS)])


def test_mask_is_true_within_a_row() -> None:
    mask = position_mask(torch.tensor([2, 0, 3]), 3)
    assert mask.tolist() == [[True, True, False], [False, False, False], [True, True, True]]


@pytest.mark.parametrize("poison", POISONS)
def test_padding_becomes_zero_and_the_rest_stays(poison: float) -> None:
    x, lengths = padded(poison)
    expected = x.clone()
    for row, length in enumerate(LENGTHS):
        expected[row, length:] = 0
    assert torch.equal(mask_padding(x, lengths), expected)
    assert torch.equal(mask_padding(x[..., 0], lengths), expected[..., 0])
    assert mask_padding(x, None) is x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_padding_has_no_gradient_whatever_comes_back(dtype: torch.dtype) -> None:
    """Nor does a second derivative; the gradient of the true positions passes as it is, laid out in whatever order."""
    x, lengths = padded(float("nan"))
    leaf = x.to(dtype).mT.contiguous().mT.requires_grad_()
    incoming = x.to(dtype).requires_grad_()
    expected = mask_padding(incoming.detach(), lengths)
    (grad,) = torch.autograd.grad(mask_padding(leaf, lengths), leaf, incoming, create_graph=True)
    assert torch.equal(grad, expected)
    (second,) = torch.autograd.grad(grad, incoming, torch.ones_like(grad))
    assert torch.equal(second, position_mask(lengths, 7).unsqueeze(2).expand_as(second).to(dtype))
    (plain,) = torch.autograd.grad(mask_padding(leaf, lengths), leaf, incoming.detach())
    assert torch.equal(plain, expected)


@pytest.mark.parametrize("poison", POISONS)
def test_mean_and_its_gradient_are_those_of_the_true_positions(poison: float) -> None:
    """A row without a true position has mean 0; padding has gradient 0."""
    x, lengths = padded(poison)
    x.requires_grad_()
    mean = masked_mean(x, lengths)
    rows = [x[row, :length].mean(0) if length else torch.zeros(3) for row, length in enumerate(LENGTHS)]
    assert_near(mean, torch.stack([row.double() for row in rows]), OUTPUT[torch.float64])
    (grad,) = torch.autograd.grad(mean.sum(), x)
    for row, length in enumerate(LENGTHS):
        expected = torch.full((length, 3), 1 / max(length, 1), dtype=torch.float64)
        assert_near(grad[row, :length], expected, OUTPUT[torch.float64])
        assert (grad[row, length:] == 0).all()


def test_history_ends_at_each_length() -> None:
    """Rows of 3 older and 5 new positions: the last 3 true ones."""
    x = torch.arange(8).expand(4, 8)
    history = last_positions(x, torch.tensor([0, 1, 4, 5]), 3)
    assert history.tolist() == [[0, 1, 2], [1, 2, 3], [4, 5, 6], [5, 6, 7]]
    assert torch.equal(last_positions(x, None, 3), x[:, 5:])
    assert last_positions(x, None, 0).shape == (4, 0)


@pytest.mark.parametrize("poison", POISONS)
def test_batch_norm_in_training_sees_only_true_positions(poison: float) -> None:
    """Output, running statistics and gradients equal those of the true positions alone."""
    x, lengths = padded(poison)
    norm = SequenceNorm(3, "batch").double()
    torch.nn.init.normal_(norm.inner.weight)
    torch.nn.init.normal_(norm.inner.bias)
    weight, bias = norm.inner.weight.detach(), norm.inner.bias.detach()
    alone = true_positions(x).requires_grad_()
    mean, variance = alone.mean(0), alone.var(0, unbiased=False)
    expected = (alone - mean) / torch.sqrt(variance + norm.inner.eps) * weight + bias

    x.requires_grad_()
    y = norm(x, lengths)
    assert_near(true_positions(y), expected, OUTPUT[torch.float64])
    assert (y[~position_mask(lengths, 7)] == 0).all()
    assert_near(norm.inner.running_mean, 0.1 * mean, OUTPUT[torch.float64])
    assert_near(norm.inner.running_var, 0.9 + 0.1 * alone.var(0, unbiased=True), OUTPUT[torch.float64])

    target = torch.randn_like(expected)
    grad, grad_weight = torch.autograd.grad((true_positions(y) * target).sum(), (x, norm.inner.weight))
    (expected_grad,) = torch.autograd.grad((expected * target).sum(), alone)
    assert_near(true_positions(grad), expected_grad, GRADIENT[torch.float64])
    assert (grad[~position_mask(lengths, 7)] == 0).all()
    normalised = (expected.detach() - bias) / weight
    assert_near(grad_weight, (normalised * target).sum(0), GRADIENT[torch.float64])


@pytest.mark.parametrize("poison", POISONS)
def test_batch_norm_in_eval_uses_its_running_statistics(poison: float) -> None:
    x, lengths = padded(poison)
    norm = SequenceNorm(3, "batch").double().eval()
    norm.inner.running_mean.normal_()
    norm.inner.running_var.uniform_(0.5, 2)
    expected = (true_positions(x) - norm.inner.running_mean) / torch.sqrt(norm.inner.running_var + norm.inner.eps)
    assert_near(true_positions(norm(x, lengths)), expected, OUTPUT[torch.float64])


@pytest.mark.parametrize("poison", POISONS)
def test_layer_norm_and_its_gradients_see_only_true_positions(poison: float) -> None:
    x, lengths = padded(poison)
    norm = SequenceNorm(3, "layer").double()
    alone = true_positions(x)
    deviation = alone - alone.mean(1, keepdim=True)
    expected = deviation / torch.sqrt(deviation.square().mean(1, keepdim=True) + norm.inner.eps)
    y = norm(x, lengths)
    assert_near(true_positions(y), expected, OUTPUT[torch.float64])
    (grad_weight,) = torch.autograd.grad(true_positions(y).sum(), norm.inner.weight)
    assert_near(grad_weight, expected.sum(0), GRADIENT[torch.float64])


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_without_lengths_every_position_is_true(kind: str) -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    norms = [SequenceNorm(3, kind).double() for _ in range(2)]  # type: ignore[arg-type]
    assert_near(norms[0](x), norms[1](x, torch.tensor([5, 5])), OUTPUT[torch.float64])


def test_an_unknown_norm_is_named() -> None:
    with pytest.raises(ValueError, match="'batch' or 'layer', got 'group'"):
        SequenceNorm(3, "group")  # type: ignore[arg-type]
