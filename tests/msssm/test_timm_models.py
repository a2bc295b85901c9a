"""timm's interface to our models, checked through timm's own functions."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import calculate_drop_path_rates
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2, param_groups_layer_decay

import msssm.timm
from datamodules import ImageNetDataModule
from msssm import Backbone, MultiScaleSSM, PatchEmbedding, SequenceClassifier, param_groups
from msssm.pretrained import write_pretrained
from tasks import ImageTask
from tests.support.tolerances import OUTPUT, assert_near

NAMES = ["msssm_s4_small", "msssm_s4_tiny", "msssm_s6_small", "msssm_s6_tiny"]
SMALL = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_classes": 10}


def images(height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def tiny(name: str = "msssm_s6_tiny", **options: object) -> msssm.timm.TimmImageModel:
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **options})


def test_the_registry_lists_them() -> None:
    assert timm.list_models("msssm_*") == NAMES
    assert timm.list_models("msssm_*", pretrained=True) == []
    with pytest.raises(RuntimeError, match="No pretrained weights exist for msssm_s6_tiny"):
        tiny(pretrained=True)


def test_the_small_model_is_the_papers_size() -> None:
    model = timm.create_model("msssm_s6_small")
    assert (len(model.backbone.blocks), model.num_features, model.num_classes) == (24, 256, 1000)
    config, data = timm.data.resolve_model_data_config(model), ImageNetDataModule()
    assert config["input_size"] == (3, data.image_size, data.image_size)
    assert config["crop_pct"] == data.crop_pct


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_model_is_the_sequence_classifier(name: str) -> None:
    """The same weights under the same names, so the same logits; at any size that divides into patches."""
    model = tiny(name).eval()
    layer = partial(MultiScaleSSM, state_size=26, ssm="s6" if "_s6_" in name else "s4")
    same = SequenceClassifier(PatchEmbedding(32, 16, 3, 16), Backbone(layer, 16, 2, prenorm=True), 10).eval()
    same.load_state_dict(model.state_dict())
    for x in (images(), images(64, 48)):
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
    assert torch.equal(tiny(num_classes=0).eval()(x), features.mean(1))
    with pytest.raises(ValueError, match="'avg', 'last' or '', got 'token'"):
        model.reset_classifier(3, "token")


def test_the_rates_of_stochastic_depth_are_timms() -> None:
    model = tiny(depth=7, drop_path_rate=0.3)
    assert [block.drop_path for block in model.backbone.blocks] == pytest.approx(calculate_drop_path_rates(0.3, 7))


@pytest.mark.parametrize("scan_order", ["raster", "snake"])
@torch.no_grad()
def test_intermediates_are_the_blocks_outputs_in_raster_order(scan_order: str) -> None:
    """Of images that are not square, against hooks on the blocks; every option of timm's."""
    model, x = tiny(depth=3, scan_order=scan_order).eval(), images(32, 48)
    outputs: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda *args: outputs.append(args[2])) for block in model.backbone.blocks]
    features = model.forward_features(x)
    for hook in hooks:
        hook.remove()

    def placed(y: torch.Tensor) -> torch.Tensor:
        grid = y.view(2, 2, 3, 16).clone()
        if scan_order == "snake":
            grid[:, 1] = grid[:, 1].flip(1)
        return grid.permute(0, 3, 1, 2)

    def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
        assert len(found) == len(expected)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))

    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, features)
    same(maps, [placed(y) for y in outputs])
    _, tokens = model.forward_intermediates(x, output_fmt="NLC")
    same(tokens, [each.flatten(2).transpose(1, 2) for each in maps])
    same(model.forward_intermediates(x, 2, intermediates_only=True), maps[1:])
    same(model.forward_intermediates(x, [0, -1], intermediates_only=True), [maps[0], maps[2]])
    normed = [placed(model.backbone.norm(y)) for y in outputs]
    same(model.forward_intermediates(x, norm=True, intermediates_only=True), normed)
    early, first = model.forward_intermediates(x, [0], stop_early=True)
    same(first, maps[:1])
    assert torch.equal(early, model.backbone.norm(outputs[0]))
    with pytest.raises(ValueError, match="'NCHW' or 'NLC', got 'NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")


@torch.no_grad()
def test_features_only_is_a_pruned_model() -> None:
    model, x = tiny(depth=4).eval(), images(64, 64)
    maps = model.forward_intermediates(x, intermediates_only=True)
    features = tiny(depth=4, features_only=True, out_indices=(0, 2)).eval()
    found = features(x)
    assert [each.shape for each in found] == [(2, 16, 4, 4)] * 2
    assert torch.equal(found[0], maps[0])
    assert torch.equal(found[1], maps[2])
    assert len(features.model.backbone.blocks) == 3
    assert (features.feature_info.channels(), features.feature_info.reduction()) == ([16, 16], [16, 16])
    assert features.feature_info.module_name() == ["backbone.blocks.0", "backbone.blocks.2"]
    assert not any(name.startswith(("model.head.", "model.backbone.norm")) for name in features.state_dict())


@pytest.mark.parametrize("options", [{"scan_order": "snake"}, {"in_chans": 1, "num_classes": 3}])
@torch.no_grad()
def test_timms_folders_are_read_again(tmp_path: Path, options: dict[str, Any]) -> None:
    model = tiny(**options).eval()
    x = torch.randn(2, model.in_chans, 32, 32)
    save_for_hf(model, tmp_path, safe_serialization="both")
    torch.manual_seed(1)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(x), model(x))
    assert again.pretrained_cfg["num_classes"] == model.num_classes
    assert again.pretrained_cfg["input_size"][0] == model.in_chans
    assert not torch.equal(timm.create_model(f"local-dir:{tmp_path}").eval()(x), model(x))


@torch.no_grad()
def test_a_folder_is_fitted_to_other_classes_and_channels(tmp_path: Path) -> None:
    """Grey images give what three equal channels give, as when timm adapts a convolution."""
    model = tiny().eval()
    save_for_hf(model, tmp_path)
    grey = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1, num_classes=3).eval()
    x = torch.randn(2, 1, 32, 32)
    assert grey(x).shape == (2, 3)
    assert_near(grey.forward_features(x), model.forward_features(x.expand(-1, 3, -1, -1)), OUTPUT[torch.float32])
    features = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, out_indices=[1]).eval()
    [expected] = model.forward_intermediates(images(), [1], intermediates_only=True)
    assert torch.equal(features(images())[0], expected)


@torch.no_grad()
def test_image_task_and_timm_share_weights(tmp_path: Path) -> None:
    """Either file loads into timm, with its head or for other classes, and timm's weights into the task."""
    layer = partial(MultiScaleSSM, levels=3, kernel_size=4, state_size=26)
    task = ImageTask(Backbone(layer, 16, 2, prenorm=True), 32, 16, 3, 10, "snake", "last").eval()
    torch.save({"state_dict": task.state_dict(), "epoch": 3}, tmp_path / "best.ckpt")
    write_pretrained(tmp_path, task.model.backbone.config, task.model.state_dict(), "backbone.")
    options = {"scan_order": "snake", "global_pool": "last"}
    for name in ("best.ckpt", "model.safetensors"):
        model = tiny(checkpoint_path=str(tmp_path / name), **options).eval()
        assert torch.equal(model(images()), task(images()))
        cfg = {"file": str(tmp_path / name), "num_classes": 10}
        other = tiny(pretrained=True, pretrained_cfg_overlay=cfg, **{**options, "num_classes": 3}).eval()
        assert torch.equal(other.forward_features(images()), model.forward_features(images()))
        assert other(images()).shape == (2, 3)
    with pytest.raises(RuntimeError, match=r"Missing key.*backbone.blocks.2"):
        tiny(checkpoint_path=str(tmp_path / "best.ckpt"), depth=3, **options)
    trained = tiny(**options).eval()
    task.model.load_state_dict(trained.state_dict())
    assert torch.equal(task(images()), trained(images()))


def test_timms_optimizer_decays_what_ours_decays() -> None:
    model = tiny()
    theirs = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    ours = {id(p): g["weight_decay"] for g in param_groups(model, 1e-3, 0.05) for p in g["params"]}
    assert {id(p): g["weight_decay"] for g in theirs.param_groups for p in g["params"]} == ours
    assert {0.0, 0.05} == set(ours.values())


def test_layer_decay_orders_embedding_blocks_and_head() -> None:
    model = tiny(depth=3)
    scales = {id(p): g["lr_scale"] for g in param_groups_layer_decay(model, layer_decay=0.5) for p in g["params"]}
    order = [scales[id(next(part.parameters()))] for part in (model.encoder, *model.backbone.blocks, model.head)]
    assert order == sorted(order)
    assert len(set(order)) == 5
    assert len(scales) == len(list(model.parameters()))


def test_gradient_checkpointing_leaves_the_gradients() -> None:
    model, gradients = tiny(), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        assert all(block.recompute == enable for block in model.backbone.blocks)
        model.zero_grad()
        model(images()).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@torch.no_grad()
def test_bidirectional_sees_the_last_patch_first() -> None:
    x = images()
    changed = x.clone()
    changed[:, :, 16:, 16:] += 1
    for bidirectional in (False, True):
        model = tiny(bidirectional=bidirectional).eval()
        first = (model.forward_features(changed) - model.forward_features(x))[:, 0].abs().max()
        assert (first > 1e-4) == bidirectional
