"""MS-SSM image models in timm's registry.

Run `import msssm.integrations.timm` once; then `timm.create_model("msssm_s6_small")`.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import (
    adapt_input_conv,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from msssm.backbone import Backbone
from msssm.bidirectional import Bidirectional
from msssm.block import Block
from msssm.classifier import Pooling, SequenceClassifier
from msssm.errors import InputError
from msssm.image import PatchEmbedding, ScanOrder
from msssm.layer import SequenceLayer
from msssm.multiscale import MultiScaleSSM
from msssm.param_groups import param_groups

Pool = Literal["avg", "last", ""]
Indices = int | list[int]
ImageSize = int | Sequence[int]


class TimmImageModel(nn.Module):
    """Image classifier with timm's interface and option names: patches, backbone, pooling, linear head.

    Args:
        ssm: "s6", "s4" or "none", see `MultiScaleSSM`.
        img_size: H = W, or (H, W), of the images (B, C, H, W); without `pos_embed`, any multiple of the patch is taken.
        patch_size: side of a patch, in pixels.
        in_chans: C.
        num_classes: of the head; 0 for none.
        global_pool: "avg" (the paper's mean), "last" (the last patch), or "" for all patches.
        embed_dim: D.
        depth: number of blocks.
        levels: S.
        kernel_size: K, taps of a filter.
        state_size: N per band.
        drop_rate: dropout before the head.
        proj_drop_rate: dropout of channels in every block.
        drop_path_rate: stochastic depth of the last block, see `Backbone`.
        scan_order: "raster" or "snake".
        pos_embed: a learned position embedding.
        bidirectional: a second layer per block, over the reversed patches.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        ssm: Literal["s6", "s4", "none"] = "s6",
        img_size: ImageSize = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Pool = "avg",
        embed_dim: int = 256,
        depth: int = 24,
        levels: int = 3,
        kernel_size: int = 4,
        state_size: int = 26,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        scan_order: ScanOrder = "raster",
        pos_embed: bool = False,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Builds embedding, backbone and head. Raises ValueError for an option out of its range."""
        super().__init__()
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.in_chans = in_chans
        layer: Callable[[int], SequenceLayer] = partial(
            MultiScaleSSM, levels=levels, kernel_size=kernel_size, state_size=state_size, ssm=ssm
        )
        if bidirectional:
            layer = partial(Bidirectional, layer=layer)
        self.embedding = PatchEmbedding(_pair(img_size), patch_size, in_chans, embed_dim, scan_order, pos_embed)
        self.backbone = Backbone(
            layer, embed_dim, depth, norm="layer", prenorm=True, dropout=proj_drop_rate, drop_path=drop_path_rate
        )
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": patch_size, "module": f"backbone.blocks.{i}"} for i in range(depth)
        ]
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.to(device, dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, C, H, W) to features (B, L, D) of the patches, in scan order."""
        return cast("Tensor", self.backbone(self.embedding(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps features (B, L, D) to logits (B, num_classes), or with `pre_logits` to the input of the head."""
        if self.global_pool:
            x = x.mean(1) if self.global_pool == "avg" else x[:, -1]
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, C, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Indices | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps images (B, C, H, W) to the outputs of blocks, in raster order whatever the scan order.

        Args:
            x: images.
            indices: of the blocks, negative ones from the end; the last n blocks if an int, all if None.
            norm: apply the final norm to each.
            stop_early: run no block after the last of `indices`.
            output_fmt: "NCHW" for (B, D, H / P, W / P), "NLC" for (B, L, D).
            intermediates_only: return the list alone, without the features (B, L, D) of `forward_features`, which with
                `stop_early` are those of the last block that ran.

        Raises:
            ValueError: the format is another.
            AssertionError: timm's, for a block that is not there.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise InputError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        taken, last = feature_take_indices(len(self.backbone.blocks), indices)
        height, width = x.shape[-2:]
        last_norm = self.backbone.norm or nn.Identity()
        x, intermediates = self.embedding(x), []
        for i, block in enumerate(self.backbone.blocks[: last + 1] if stop_early else self.backbone.blocks):
            x = block(x)
            if i in taken:
                grid = self.embedding.unscan(last_norm(x) if norm else x, height, width)
                intermediates.append(
                    grid.flatten(1, 2) if output_fmt == "NLC" else grid.permute(0, 3, 1, 2).contiguous()
                )
        return intermediates if intermediates_only else (last_norm(x), intermediates)

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the blocks after the last of `indices`, and if asked final norm and head; returns the indices."""
        taken, last = feature_take_indices(len(self.backbone.blocks), indices)
        self.backbone.blocks = self.backbone.blocks[: last + 1]
        if prune_norm:
            self.backbone.norm = None
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Creates a new head, with the device and dtype of the embedding. Raises ValueError for an unknown pooling."""
        if global_pool is not None:
            if global_pool not in ("avg", "last", ""):
                raise InputError(f"global_pool must be 'avg', 'last' or '', got {global_pool!r}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        weight = self.embedding.projection.weight
        head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()
        self.head: nn.Module = head.to(weight.device, weight.dtype).train(self.training)

    def set_input_size(self, img_size: ImageSize) -> None:
        """Changes the size of the images, H = W or (H, W); a position embedding is interpolated as in timm's ViT.

        Raises:
            ValueError: the size does not divide into patches.
        """
        size, embedding = _pair(img_size), self.embedding
        embedding.check_divides(*size)
        if embedding.position is not None and size != embedding.height_width:
            position = _interpolated(embedding, embedding.position.detach(), embedding.height_width, size)
            embedding.position = nn.Parameter(position, embedding.position.requires_grad)
        embedding.image_size = size
        # Where timm's save_for_hf finds it.
        self._traits = {**getattr(self, "_traits", {}), "img_size": size}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights of a model like this one, or of the same network trained by `tasks.ImageTask`.

        The latter are a run's `best.ckpt` (its "state_dict") or an exported `model.safetensors`.
        """
        return super().load_state_dict(_own_names(state_dict), strict, assign)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Sets whether blocks recompute their activations in the backward, see `msssm.recompute`."""
        for block in cast("Iterable[Block]", self.backbone.blocks):
            block.recompute = enable

    def no_weight_decay(self) -> set[str]:
        """Names without weight decay, as in `msssm.param_groups`: A, step sizes and D of the SSMs, norms and biases."""
        decaying = {id(p) for group in param_groups(self, 1.0, 1.0) if group["weight_decay"] for p in group["params"]}
        return {name for name, parameter in self.named_parameters() if id(parameter) not in decaying}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of the layers for timm's layer-wise learning rates: embedding, blocks, final norm."""
        return {"stem": r"^embedding", "blocks": [(r"^backbone\.blocks\.(\d+)", None), (r"^backbone\.norm", (99999,))]}


def sequence_classifier(model: TimmImageModel) -> SequenceClassifier:
    """The same network, sharing all parameters, as msssm's own classes: its state dict is that of `ImageTask.model`.

    Raises:
        ValueError: the model has no head or no pooling.
    """
    if not model.num_classes or not model.global_pool:
        raise InputError(
            f"a classifier has a head and a pooling, got num_classes={model.num_classes} and "
            f"global_pool={model.global_pool!r}; call reset_classifier first"
        )
    pooling: Pooling = "mean" if model.global_pool == "avg" else "last"
    classifier = SequenceClassifier(model.embedding, model.backbone, model.num_classes, pooling)
    classifier.head = cast("nn.Linear", model.head)
    classifier.training = model.training  # not of the parts, which may be frozen
    return classifier


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: TimmImageModel) -> dict[str, Any]:
    """Fits pretrained weights to a model: the names of `ImageTask`, 3 channels to others, positions to another size."""
    fitted, embedding = _own_names(state_dict), model.embedding
    kernel, patch = fitted["embedding.projection.weight"], model.embedding.patch_size
    if kernel.shape[1] == 3 * patch**2 and model.in_chans != 3:
        kernel = kernel.unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2)
        fitted["embedding.projection.weight"] = adapt_input_conv(model.in_chans, kernel).permute(0, 2, 3, 1).flatten(1)
    position = fitted.get("embedding.position")
    if position is not None and embedding.position is not None:
        side = patch * math.isqrt(len(position))
        old = _pair(getattr(model, "pretrained_model_args", {}).get("img_size", side))
        fitted["embedding.position"] = _interpolated(embedding, position, old, embedding.height_width)
    return fitted


def _own_names(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Renames weights of `ImageTask` (model.encoder.*) or `SequenceClassifier` (encoder.*), and leaves others."""
    return {
        re.sub(r"^(model\.)?encoder\.", "embedding.", name).removeprefix("model."): value
        for name, value in state_dict.items()
    }


def _interpolated(embedding: PatchEmbedding, position: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resamples a position embedding (L, D) from images of one size to those of another."""
    patch = embedding.patch_size
    old_grid, new_grid = ([side // patch for side in size] for size in (old, new))
    grid = embedding.unscan(position.unsqueeze(0), *old).flatten(1, 2)
    resampled = resample_abs_pos_embed(grid, new_grid, old_grid, num_prefix_tokens=0)
    return embedding.scan(resampled.unflatten(1, new_grid)).squeeze(0)


def _pair(img_size: ImageSize) -> tuple[int, int]:
    """(H, W) of a size that timm's users may give as a number, or as the list of a JSON file."""
    size = [img_size, img_size] if isinstance(img_size, int) else img_size
    if len(size) != 2:
        raise InputError(f"img_size must be H = W or (H, W), got {img_size!r}")
    return size[0], size[1]


def _cfg() -> dict[str, Any]:
    return {
        "url": "",  # no weights are published
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,  # as `datamodules.ImageNetDataModule` evaluates
        "interpolation": "bicubic",
        "fixed_input_size": False,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "embedding.projection",
        "classifier": "head",
        "paper_ids": "arXiv:2512.23824",
    }


default_cfgs = generate_default_cfgs(
    {name: _cfg() for name in ("msssm_s6_tiny", "msssm_s6_small", "msssm_s4_tiny", "msssm_s4_small")}
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> TimmImageModel:
    if kwargs.get("pos_embed"):
        overlay = kwargs.get("pretrained_cfg_overlay") or {}
        kwargs["pretrained_cfg_overlay"] = {"fixed_input_size": True, **overlay}
    features = {"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"}
    model: TimmImageModel = build_model_with_cfg(
        TimmImageModel,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=features,
        **kwargs,
    )
    return model


@register_model
def msssm_s6_tiny(pretrained: bool = False, **kwargs: Any) -> TimmImageModel:
    """12 x 192, 16 x 16 patches."""
    return _create("msssm_s6_tiny", pretrained, **{"ssm": "s6", "embed_dim": 192, "depth": 12, **kwargs})


@register_model
def msssm_s6_small(pretrained: bool = False, **kwargs: Any) -> TimmImageModel:
    """The paper's ImageNet model: 24 x 256, 16 x 16 patches."""
    return _create("msssm_s6_small", pretrained, **{"ssm": "s6", "embed_dim": 256, "depth": 24, **kwargs})


@register_model
def msssm_s4_tiny(pretrained: bool = False, **kwargs: Any) -> TimmImageModel:
    """12 x 192, 16 x 16 patches."""
    return _create("msssm_s4_tiny", pretrained, **{"ssm": "s4", "embed_dim": 192, "depth": 12, **kwargs})


@register_model
def msssm_s4_small(pretrained: bool = False, **kwargs: Any) -> TimmImageModel:
    """The paper's ImageNet model with time-invariant state space models: 24 x 256, 16 x 16 patches."""
    return _create("msssm_s4_small", pretrained, **{"ssm": "s4", "embed_dim": 256, "depth": 24, **kwargs})
