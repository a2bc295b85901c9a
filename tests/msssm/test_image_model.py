"""Patches, pooling, both directions."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msssm import Backbone, Bidirectional, MultiScaleSSM, PatchEmbedding, SequenceClassifier
from msssm.classifier import Pooling
from tests.support.layers import build, signal
from tests.support.tolerances import OUTPUT, assert_near

multi = partial(MultiScaleSSM, levels=2, kernel_size=3, state_size=4)


def images(side: int = 8, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("patch", [1, 2, 4])
@torch.no_grad()
def test_patches_are_a_strided_convolution(patch: int) -> None:
    """The linear map of each patch, in raster order, is torch's convolution with the same weights."""
    torch.manual_seed(0)
    embedding, x = PatchEmbedding(8, patch, 3, 5), images()
    kernel = embedding.projection.weight.unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2)
    expected = nn.functional.conv2d(x, kernel, embedding.projection.bias, stride=patch)
    assert_near(embedding(x), expected.flatten(2).transpose(1, 2), OUTPUT[torch.float32])


@pytest.mark.parametrize("order", ["raster", "snake"])
@pytest.mark.parametrize("patch", [1, 2])
@torch.no_grad()
def test_pixels_in_raster_order_are_the_image(patch: int, order: Any) -> None:
    torch.manual_seed(0)
    embedding, x = PatchEmbedding(8, patch, 3, 5, order, position_embedding=True), images()
    assert torch.equal(embedding(x.flatten(2).transpose(1, 2)), embedding(x))


@torch.no_grad()
def test_neighbours_in_a_snake_touch() -> None:
    """Each patch of a snake lies beside the one before it, and all of them are visited."""
    embedding = PatchEmbedding(8, 2, 2, 2, "snake")
    embedding.projection.weight.copy_(torch.tensor([[0.25, 0] * 4, [0, 0.25] * 4]))  # the mean of each channel
    embedding.projection.bias.zero_()
    place = torch.arange(8.0)
    rows_and_columns = torch.stack((place.view(-1, 1).expand(8, 8), place.expand(8, 8))).unsqueeze(0)
    path = embedding(rows_and_columns)[0]
    assert torch.equal(path.diff(dim=0).abs().sum(1), torch.full((15,), 2.0))
    assert len(path.unique(dim=0)) == 16


@pytest.mark.parametrize("order", ["raster", "snake"])
@torch.no_grad()
def test_tokens_go_back_to_their_place_in_the_image(order: Any) -> None:
    """Of an image that is not square; each token is the mean of its patch."""
    embedding = PatchEmbedding(8, 2, 1, 1, order)
    embedding.projection.weight.fill_(0.25)
    embedding.projection.bias.zero_()
    x = torch.randn(2, 1, 6, 8)
    tokens = embedding(x)
    assert_near(embedding.unscan(tokens, 6, 8)[..., 0], nn.functional.avg_pool2d(x[:, 0], 2), OUTPUT[torch.float32])
    assert torch.equal(embedding.scan(embedding.unscan(tokens, 6, 8)), tokens)


@torch.no_grad()
def test_the_position_embedding_is_added_to_each_position() -> None:
    torch.manual_seed(0)
    embedding = PatchEmbedding(8, 4, 3, 5, position_embedding=True)
    assert embedding.position is not None
    assert embedding.position.shape == (4, 5)
    with_positions = embedding(images())
    embedding.position.zero_()
    difference = with_positions - embedding(images())
    assert 0.005 < difference.std() < 0.05
    assert_near(difference[0], difference[1], OUTPUT[torch.float32])


def test_without_positions_another_resolution_is_taken() -> None:
    assert PatchEmbedding(8, 4, 3, 5)(images(16)).shape == (2, 16, 5)
    with pytest.raises(ValueError, match=r"of 4 patches.*got 16"):
        PatchEmbedding(8, 4, 3, 5, position_embedding=True)(images(16))
    with pytest.raises(ValueError, match=r"of 4 patches.*got 4 of an input of shape \(2, 3, 4, 16\)"):
        PatchEmbedding(8, 4, 3, 5, position_embedding=True)(torch.zeros(2, 3, 4, 16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchEmbedding(30, 4), "30 x 30 pixels does not divide into patches of 4 x 4"),
        (lambda: PatchEmbedding(8, 4, 3, 5)(images(10)), "10 x 10 pixels does not divide into patches of 4 x 4"),
        (lambda: PatchEmbedding(8, 4, 1, 5)(images()), r"expected images \(B, 1, H, W\).*got shape \(2, 3, 8, 8\)"),
        (lambda: PatchEmbedding(8, 4, 3, 5)(torch.zeros(1, 60, 3)), "has 64 pixels, got 60"),
        (lambda: PatchEmbedding(0, 4), "image_size must be at least 1, got 0"),
        (lambda: PatchEmbedding(8, 0), "patch_size must be at least 1, got 0"),
        (lambda: PatchEmbedding(8, 4, scan_order="zigzag"), "'raster' or 'snake', got 'zigzag'"),  # type: ignore[arg-type]
        (lambda: SequenceClassifier(nn.Identity(), Backbone(multi, 4, 1), 2, "max"), "'mean' or 'last', got 'max'"),  # type: ignore[arg-type]
        (lambda: Bidirectional(4, multi, mix="mean"), "'linear' or 'sum', got 'mean'"),  # type: ignore[arg-type]
        (lambda: Bidirectional(4, multi).initial_state(1), "sees the future"),
        (lambda: Bidirectional(4, multi)(torch.zeros(1, 3, 4), return_state=True), "sees the future"),
        (lambda: Bidirectional(4, multi).step(torch.zeros(1, 4), None), "sees the future"),
    ],
)
def test_what_does_not_fit_is_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("pooling", ["mean", "last"])
@torch.no_grad()
def test_pooling_reads_the_true_positions(pooling: Pooling) -> None:
    torch.manual_seed(0)
    model = SequenceClassifier(nn.Linear(3, 4), Backbone(multi, 4, 1), 2, pooling).double().eval()
    x, lengths = signal(9, batch=3, width=3), torch.tensor([9, 4, 0])
    x[1, 4:], x[2] = float("nan"), float("nan")
    logits = model(x, lengths)
    for row, length in enumerate([9, 4]):
        y = model.backbone(model.encoder(x[row : row + 1, :length]))[0]
        assert_near(logits[row], model.head(y.mean(0) if pooling == "mean" else y[-1]), OUTPUT[torch.float64])
    assert_near(logits[2], model.head.bias, OUTPUT[torch.float64])
    assert_near(model(x[:1]), logits[:1], OUTPUT[torch.float64])


@pytest.mark.parametrize("mix", ["linear", "sum"])
@torch.no_grad()
def test_bidirectional_is_its_formula_on_the_true_positions(mix: Any) -> None:
    layer = build(lambda d: Bidirectional(d, multi, mix=mix))
    assert isinstance(layer, Bidirectional)
    x, lengths = signal(9, batch=3), [9, 4, 1]
    for row, length in enumerate(lengths):
        x[row, length:] = float("nan")
    y = layer(x, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        true = x[row : row + 1, :length]
        past, future = layer.forward_layer(true), layer.backward_layer(true.flip(1)).flip(1)
        expected = past + future if layer.mix is None else layer.mix(torch.cat((past, future), 2))
        assert_near(y[row : row + 1, :length], expected, OUTPUT[torch.float64])


@torch.no_grad()
def test_bidirectional_sees_the_future() -> None:
    layer, x = build(lambda d: Bidirectional(d, multi)), signal(9)
    changed = x.clone()
    changed[:, -1] += 1
    assert (layer(changed) - layer(x))[:, 0].abs().max() > 1e-3


def test_a_backbone_of_both_directions_is_a_classifier() -> None:
    """Gradients reach every parameter through padded rows."""
    backbone = Backbone(partial(Bidirectional, layer=multi), 4, 2, norm="batch")
    model = SequenceClassifier(nn.Linear(3, 4), backbone, 2, "last").double()
    model(signal(9, batch=3, width=3), torch.tensor([9, 4, 6])).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
