"""timm's interface to our models, checked through timm's own functions."""

from pathlib import Path

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay

import msssm.integrations.timm
from msssm import Backbone, MultiScaleSSM, PatchEmbedding, SequenceClassifier, param_groups
from tests.support.tolerances import OUTPUT, assert_near

NAMES = ["msssm_s4_small", "msssm_s4_tiny", "msssm_s6_small", "msssm_s6_tiny"]
SMALL = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_classes": 10}


def images(side: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def tiny(name: str = "msssm_s6_tiny", **options: object) -> msssm.integrations.timm.TimmImageModel:
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **options})


def test_the_registry_lists_them() -> None:
    assert timm.list_models("msssm_*") == NAMES
    assert timm.list_models("msssm_*", pretrained=True) == []


def test_the_small_model_is_the_papers_size() -> None:
    model = timm.create_model("msssm_s6_small")
    assert (len(model.backbone.blocks), model.num_features, model.num_classes) == (24, 256, 1000)
    assert model.default_cfg["input_size"] == (3, 224, 224)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_model_is_the_sequence_classifier(name: str) -> None:
    """The same modules as `msssm.SequenceClassifier` over patches, so the same logits."""
    model, x = tiny(name).eval(), images()
    layer = lambda d: MultiScaleSSM(d, state_size=26, ssm="s6" if "_s6_" in name else "s4")  # noqa: E731
    same = SequenceClassifier(PatchEmbedding(32, 16, 3, 16), Backbone(layer, 16, 2, prenorm=True), 10).eval()
    names = {"embedding": "encoder"}
    state = {
        names.get(k.split(".")[0], k.split(".")[0]) + k[len(k.split(".")[0]) :]: v
        for k, v in model.state_dict().items()
    }
    same.load_state_dict(state)
    assert_near(model(x), same(x), OUTPUT[torch.float32])
    assert_near(model.forward_head(model.forward_features(x)), model(x), OUTPUT[torch.float32])


@torch.no_grad()
def test_pooling_and_head_can_be_replaced() -> None:
    model, x = tiny().eval(), images()
    features = model.forward_features(x)
    assert features.shape == (2, 4, 16)
    assert torch.equal(model.forward_head(features, pre_logits=True), features.mean(1))
    model.reset_classifier(3, "last")
    assert model(x).shape == (2, 3)
    assert torch.equal(model.forward_head(features, pre_logits=True), features[:, -1])
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    with pytest.raises(ValueError, match="'avg', 'last' or '', got 'token'"):
        model.reset_classifier(3, "token")


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(RuntimeError, match="one resolution, so no pyramid for features_only"):
        tiny(features_only=True)
    with pytest.raises(RuntimeError, match="no weights are published"):
        tiny(pretrained=True)


def test_timms_optimizer_decays_what_ours_decays() -> None:
    model = tiny()
    theirs = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    ours = {id(p): g["weight_decay"] for g in param_groups(model, 1e-3, 0.05) for p in g["params"]}
    assert {id(p): g["weight_decay"] for g in theirs.param_groups for p in g["params"]} == ours
    assert {0.0, 0.05} == set(ours.values())


def test_layer_decay_orders_embedding_blocks_and_head() -> None:
    model = tiny(depth=3)
    scales = {id(p): g["lr_scale"] for g in param_groups_layer_decay(model, layer_decay=0.5) for p in g["params"]}
    order = [scales[id(next(part.parameters()))] for part in (model.embedding, *model.backbone.blocks, model.head)]
    assert order == sorted(order)
    assert len(set(order)) == 5
    assert len(scales) == len(list(model.parameters()))


def test_gradient_checkpointing_leaves_the_gradients() -> None:
    model, gradients = tiny(), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images()).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_is_loaded_by_timm(tmp_path: Path) -> None:
    model = tiny().eval()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    other = tiny(checkpoint_path=str(tmp_path / "model.pth"), proj_drop_rate=0.1).eval()
    assert torch.equal(other(images()), model(images()))
    assert model(images(64)).shape == (2, 10), "without positions another resolution is taken"


@torch.no_grad()
def test_bidirectional_sees_the_last_patch_first() -> None:
    x = images()
    changed = x.clone()
    changed[:, :, 16:, 16:] += 1
    for bidirectional in (False, True):
        model = tiny(bidirectional=bidirectional).eval()
        first = (model.forward_features(changed) - model.forward_features(x))[:, 0].abs().max()
        assert (first > 1e-4) == bidirectional
