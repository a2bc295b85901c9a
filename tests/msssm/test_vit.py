"""The ViT backbone is timm's VisionTransformer; and it says what a bidirectional backbone cannot do."""

from collections.abc import Callable

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from msssm import PatchEmbedding, SequenceClassifier, StreamingClassifier
from msssm.export import exported_step
from msssm.timm import ViT
from tests.support.tolerances import FLOAT32, METRIC, allowed, assert_near

SIZE, PATCH, D, BLOCKS, HEADS, CLASSES = 32, 8, 24, 3, 4, 7


def ours(**options: float) -> SequenceClassifier:
    torch.manual_seed(0)
    embedding = PatchEmbedding(SIZE, PATCH, 3, D, position_embedding=True)
    return SequenceClassifier(embedding, ViT(D, BLOCKS, HEADS, mlp_ratio=2.0, **options), CLASSES)


def timms(**options: float) -> VisionTransformer:
    return VisionTransformer(
        SIZE, PATCH, num_classes=CLASSES, embed_dim=D, depth=BLOCKS, num_heads=HEADS, mlp_ratio=2.0,
        class_token=False, global_pool="avg", fc_norm=False, **options,
    )  # fmt: skip


def images() -> Tensor:
    return torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def in_our_names(theirs: VisionTransformer) -> dict[str, Tensor]:
    """timm's weights; its patches have the channel outermost, ours innermost."""
    state = {f"backbone.{name}": value for name, value in theirs.state_dict().items()}
    kernel = state.pop("backbone.patch_embed.proj.weight")
    return {
        "encoder.projection.weight": kernel.permute(0, 2, 3, 1).flatten(1),
        "encoder.projection.bias": state.pop("backbone.patch_embed.proj.bias"),
        "encoder.position": state.pop("backbone.pos_embed")[0],
        "head.weight": state.pop("backbone.head.weight"),
        "head.bias": state.pop("backbone.head.bias"),
        **state,
    }


def moved(model: VisionTransformer) -> VisionTransformer:
    """Every weight off its start, so that none is neutral: timm's head starts at zero."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def test_it_is_timms_vision_transformer() -> None:
    """Same weights, same logits; as many parameters."""
    theirs, mine = moved(timms()).eval(), ours().eval()
    mine.load_state_dict(in_our_names(theirs))
    expected = theirs(images())
    assert expected.std() > 0.1, "logits that are all alike would show nothing"
    assert_near(mine(images()), expected, METRIC)
    assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_it_trains_as_timms_does() -> None:
    """Same dropout, stochastic depth and gradients from the same random numbers."""
    options = {"drop_path": 0.5, "dropout": 0.3}
    theirs, mine = moved(timms(drop_path_rate=0.5, proj_drop_rate=0.3)), ours(**options)
    mine.load_state_dict(in_our_names(theirs))
    gradients = []
    for model in (theirs, mine):
        torch.manual_seed(3)
        model.train()(images()).square().sum().backward()
        gradients.append(model.get_parameter("norm.weight" if model is theirs else "backbone.norm.weight").grad)
    assert_near(gradients[1], gradients[0], FLOAT32)


def test_the_blocks_start_as_timms_do() -> None:
    """Linear maps normal with deviation 0.02, their biases 0."""
    for module in ours().backbone.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=allowed(0.15, "a sample of some hundreds"))
            assert not module.bias.any()


@torch.no_grad()
def test_every_position_sees_every_other() -> None:
    model, x = ViT(D, 1, HEADS).eval(), torch.randn(1, 6, D)
    for i in range(6):
        other = x.clone()
        other[0, i] = torch.randn(D)
        assert (model(other) != model(x)).any(-1).all(), f"position {i} is seen by all"


WITHOUT_STATE: dict[str, Callable[[SequenceClassifier], object]] = {
    "chunks": lambda model: model(images(), return_state=True),
    "a state": lambda model: model.backbone(torch.zeros(1, 6, D), state=0),
    "stream": lambda model: StreamingClassifier(model).initial_state(1),
    "step": lambda model: exported_step(model.backbone),
}


@pytest.mark.parametrize("use", WITHOUT_STATE)
def test_what_needs_a_state_says_no(use: str) -> None:
    with pytest.raises(ValueError, match="sees the future, so it has no state to resume from"):
        WITHOUT_STATE[use](ours().eval())


def test_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="takes rows of one length, got lengths"):
        ViT(D, 1, HEADS)(torch.zeros(2, 6, D), torch.tensor([6, 4]))


def test_an_option_out_of_its_range_is_named() -> None:
    with pytest.raises(ValueError, match="n_layers must be at least 1, got 0"):
        ViT(D, n_layers=0)
    with pytest.raises(ValueError, match="heads must divide d_model = 24, got heads = 5"):
        ViT(D, heads=5)
