"""timm's interface to our models, checked through timm's own functions."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import calculate_drop_path_rates
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.utils import ModelEmaV3
from torch.nn.functional import interpolate

import msssm.integrations.timm
from datamodules import ImageNetDataModule
from msssm import Backbone, MultiScaleSSM, PatchEmbedding, SequenceClassifier, param_groups
from msssm.integrations.timm import sequence_classifier
from msssm.pretrained import write_pretrained
from tasks import ImageTask
from tests.support.tolerances import FLOAT32, OUTPUT, assert_near

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
    assert torch.equal(tiny(num_classes=0).eval()(x), features.mean(1))
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    with pytest.raises(ValueError, match="'avg', 'last' or '', got 'token'"):
        model.reset_classifier(3, "token")


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for msssm_s6_tiny"):
        tiny(pretrained=True)
    with pytest.raises(ValueError, match="'NCHW' or 'NLC', got 'NHWC'"):
        tiny().forward_intermediates(images(), output_fmt="NHWC")
    with pytest.raises(AssertionError, match="feature index 2 is out of range"):
        tiny().forward_intermediates(images(), [2])
    with pytest.raises(ValueError, match="a head and a pooling, got num_classes=0 and global_pool='avg'"):
        sequence_classifier(tiny(num_classes=0))
    with pytest.raises(ValueError, match="40 x 40 pixels does not divide into patches of 16 x 16"):
        tiny().set_input_size(40)
    with pytest.raises(ValueError, match=r"img_size must be H = W or \(H, W\), got \[8, 8, 3\]"):
        tiny(img_size=[8, 8, 3])


def test_parameters_are_created_where_and_as_timm_says() -> None:
    assert {p.device.type for p in tiny(device="meta").parameters()} == {"meta"}
    assert {p.dtype for p in tiny(dtype=torch.float64).parameters()} == {torch.float64}


def test_the_rates_of_stochastic_depth_are_timms() -> None:
    model = tiny(depth=7, drop_path_rate=0.3)
    assert [block.drop_path for block in model.backbone.blocks] == pytest.approx(calculate_drop_path_rates(0.3, 7))


@pytest.mark.parametrize("scan_order", ["raster", "snake"])
@torch.no_grad()
def test_intermediates_are_the_blocks_outputs_in_raster_order(scan_order: str) -> None:
    """Of images that are not square, against hooks on the blocks; every option of timm's."""
    model, x = tiny(depth=3, scan_order=scan_order).eval(), torch.randn(2, 3, 32, 48)
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
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)

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


@torch.no_grad()
def test_features_only_is_a_pruned_model() -> None:
    model, x = tiny(depth=4).eval(), images(64)
    maps = model.forward_intermediates(x, intermediates_only=True)
    features = tiny(depth=4, features_only=True, out_indices=(0, 2)).eval()
    found = features(x)
    assert [each.shape for each in found] == [(2, 16, 4, 4)] * 2
    assert torch.equal(found[0], maps[0])
    assert torch.equal(found[1], maps[2])
    assert len(features.model.backbone.blocks) == 3
    assert (features.feature_info.channels(), features.feature_info.reduction()) == ([16, 16], [16, 16])
    modules = dict(model.named_modules())
    assert [modules[name] for name in features.feature_info.module_name()] == [
        model.backbone.blocks[0],
        model.backbone.blocks[2],
    ]
    assert not any(name.startswith(("model.head.", "model.backbone.norm")) for name in features.state_dict())
    assert len(tiny(depth=4, features_only=True)(x)) == 3


@pytest.mark.parametrize("options", [{}, {"pos_embed": True, "scan_order": "snake"}, {"in_chans": 1, "num_classes": 3}])
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
    assert again.pretrained_cfg["fixed_input_size"] == (model.embedding.position is not None)
    assert not torch.equal(timm.create_model(f"local-dir:{tmp_path}").eval()(x), model(x))


@torch.no_grad()
def test_a_folder_is_fitted_to_other_classes_channels_and_sizes(tmp_path: Path) -> None:
    """Grey images as three equal channels, as timm adapts a convolution; positions as timm resamples a ViT's."""
    model = tiny(pos_embed=True, scan_order="snake").eval()
    save_for_hf(model, tmp_path)
    grey = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1, num_classes=3).eval()
    x = torch.randn(2, 1, 32, 32)
    assert grey(x).shape == (2, 3)
    assert_near(grey.forward_features(x), model.forward_features(x.expand(-1, 3, -1, -1)), OUTPUT[torch.float32])
    features = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, out_indices=[1]).eval()
    [expected] = model.forward_intermediates(images(), [1], intermediates_only=True)
    assert torch.equal(features(images())[0], expected)
    larger = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=64).eval()
    model.set_input_size((64, 64))
    assert torch.equal(larger(images(64)), model(images(64)))
    model.reset_classifier(7, "last")
    save_for_hf(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(images(64)), model(images(64)))


@torch.no_grad()
def test_positions_follow_the_size_of_the_images() -> None:
    model = tiny(pos_embed=True, scan_order="snake").eval()
    before = model.embedding.unscan(model.embedding.position.unsqueeze(0), 32, 32).permute(0, 3, 1, 2)
    model.set_input_size((64, 96))
    after = model.embedding.unscan(model.embedding.position.unsqueeze(0), 64, 96).permute(0, 3, 1, 2)
    assert_near(after, interpolate(before, (4, 6), mode="bicubic", antialias=True), OUTPUT[torch.float32])
    assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 10)
    with pytest.raises(ValueError, match="of 24 patches"):
        model(images(32))


@torch.no_grad()
def test_image_task_and_timm_share_weights(tmp_path: Path) -> None:
    """best.ckpt and an export into timm, with their head or for other classes; and timm's weights into the task."""
    layer = partial(MultiScaleSSM, levels=3, kernel_size=4, state_size=26)
    task = ImageTask(Backbone(layer, 16, 2, prenorm=True), 32, 16, 3, 10, "snake", "last", True).eval()
    torch.save({"state_dict": task.state_dict(), "epoch": 3}, tmp_path / "best.ckpt")
    write_pretrained(tmp_path, task.model.backbone.config, task.model.state_dict(), "backbone.")
    options = {"scan_order": "snake", "pos_embed": True, "global_pool": "last"}
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
    classifier = sequence_classifier(trained)
    assert torch.equal(classifier(images()), trained(images()))
    assert not classifier.training
    task.model.load_state_dict(classifier.state_dict())
    assert torch.equal(task(images()), trained(images()))


def test_data_are_prepared_as_the_recipe_does() -> None:
    config = timm.data.resolve_model_data_config(tiny())
    data = ImageNetDataModule()
    assert config["crop_pct"] == data.crop_pct
    assert config["input_size"] == (3, data.image_size, data.image_size)
    picture = timm.data.create_transform(**config, is_training=False)(Image.new("RGB", (300, 400), "white"))
    white = [(1 - mean) / std for mean, std in zip(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, strict=True)]
    assert picture.shape == (3, 224, 224)
    assert picture.mean((1, 2)).tolist() == pytest.approx(white, abs=FLOAT32)


def test_timms_averaged_weights_are_their_average() -> None:
    model = tiny()
    average = ModelEmaV3(model, decay=0.75)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    average.update(model)
    for name, each in average.module.state_dict().items():
        assert_near(each, before[name] + 0.25, OUTPUT[torch.float32])
    assert average.module.eval()(images()).shape == (2, 10)


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
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    assert {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]} == scales


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
