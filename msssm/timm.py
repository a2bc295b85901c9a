"""MS-SSM image models in timm's registry, and timm's Vision Transformer as a backbone of ours.

Run `import msssm.timm` once; then `timm.create_model("msssm_s6_small")`.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, NoReturn, cast

import torch
from timm.layers.norm import LayerNorm
from timm.models import adapt_input_conv, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block as ViTBlock
from timm.models.vision_transformer import init_weights_vit_timm
from torch import Tensor, nn

from msssm.backbone import Backbone
from msssm.bidirectional import Bidirectional
from msssm.block import Block
from msssm.errors import InputError
from msssm.image import PatchEmbedding, ScanOrder
from msssm.layer import SequenceLayer, State
from msssm.multiscale import MultiScaleSSM
from msssm.param_groups import param_groups


class TimmImageModel(nn.Module):
    """Image classifier with timm's interface and option names: patches, backbone, pooling, linear head.

    It takes images of any size that divides into patches. Its weights have the names of `SequenceClassifier`.

    Args:
        ssm: "s6", "s4" or "none", see `MultiScaleSSM`.
        img_size: ignored, since the model takes any size; timm's scripts pass it.
        patch_size: side of a patch in pixels.
        in_chans: channels of an image.
        num_classes: outputs of the head; 0 for no head.
        global_pool: "avg" (the paper's mean), "last" (the last patch), or "" for all patches.
        embed_dim: D, width.
        depth: number of blocks.
        levels: S, levels of the decomposition.
        kernel_size: K, taps of a filter.
        state_size: N, states per band.
        drop_rate: dropout before the head.
        proj_drop_rate: dropout of channels in every block.
        drop_path_rate: stochastic depth of the last block, see `Backbone`.
        scan_order: "raster" or "snake".
        bidirectional: adds a second layer per block, which reads the patches backwards.
    """

    def __init__(
        self,
        ssm: Literal["s6", "s4", "none"] = "s6",
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 256,
        depth: int = 24,
        levels: int = 3,
        kernel_size: int = 4,
        state_size: int = 26,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        scan_order: ScanOrder = "raster",
        bidirectional: bool = False,
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
        self.encoder = PatchEmbedding(patch_size, patch_size, in_chans, embed_dim, scan_order)
        self.backbone = Backbone(
            layer, embed_dim, depth, norm="layer", prenorm=True, dropout=proj_drop_rate, drop_path=drop_path_rate
        )
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": patch_size, "module": f"backbone.blocks.{i}"} for i in range(depth)
        ]
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, C, H, W) to features (B, L, D) of the patches, in scan order."""
        features: Tensor = self.backbone(self.encoder(x))
        return features

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
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps images (B, C, H, W) to the outputs of blocks, in raster order whatever the scan order.

        Args:
            x: images.
            indices: blocks to return, negative ones from the end; the last n blocks if an int, all if None.
            norm: whether to apply the final norm to each.
            stop_early: whether to run no block after the last of `indices`.
            output_fmt: "NCHW" for (B, D, H / P, W / P), "NLC" for (B, L, D).
            intermediates_only: whether to return the list alone. Without it the final features (B, L, D) come first.

        Raises:
            ValueError: the format is another.
            AssertionError: timm's, for a block that does not exist.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise InputError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        taken, last = feature_take_indices(len(self.backbone.blocks), indices)
        height, width = x.shape[-2:]
        final_norm = self.backbone.norm or nn.Identity()
        x, intermediates = self.encoder(x), []
        for i, block in enumerate(self.backbone.blocks[: last + 1] if stop_early else self.backbone.blocks):
            x = block(x)
            if i in taken:
                grid = self.encoder.unscan(final_norm(x) if norm else x, height, width)
                channels_first = grid.permute(0, 3, 1, 2).contiguous()
                intermediates.append(channels_first if output_fmt == "NCHW" else grid.flatten(1, 2))
        return intermediates if intermediates_only else (final_norm(x), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
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
        """Returns the head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Creates a new head, with the device and dtype of the encoder. Raises ValueError for an unknown pooling."""
        if global_pool is not None:
            if global_pool not in ("avg", "last", ""):
                raise InputError(f"global_pool must be 'avg', 'last' or '', got {global_pool!r}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        weight = self.encoder.projection.weight
        head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()
        self.head: nn.Module = head.to(weight.device, weight.dtype).train(self.training)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights of a model like this one, or of a run's `best.ckpt`, where names begin with "model."."""
        return super().load_state_dict(_without_task(state_dict), strict, assign)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Sets whether blocks recompute their activations in the backward, see `msssm.recompute`."""
        for block in cast("Iterable[Block]", self.backbone.blocks):
            block.recompute = enable

    def no_weight_decay(self) -> set[str]:
        """Names without weight decay, as in `msssm.param_groups`: A, step sizes and D of the SSMs, norms and biases."""
        decaying = {id(p) for group in param_groups(self, 1.0, 1.0) if group["weight_decay"] for p in group["params"]}
        return {name for name, parameter in self.named_parameters() if id(parameter) not in decaying}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns for timm's layer-wise learning rates: embedding, blocks, final norm."""
        return {"stem": r"^encoder", "blocks": [(r"^backbone\.blocks\.(\d+)", None), (r"^backbone\.norm", (99999,))]}


def _without_task(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("model."): value for name, value in state_dict.items()}


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: TimmImageModel) -> dict[str, Any]:
    """Fits pretrained weights to a model: the names of `ImageTask`, and 3 channels to another number."""
    fitted, patch = _without_task(state_dict), model.encoder.patch_size
    kernel = fitted["encoder.projection.weight"]
    if kernel.shape[1] == 3 * patch**2 and model.in_chans != 3:
        kernel = kernel.unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2)
        fitted["encoder.projection.weight"] = adapt_input_conv(model.in_chans, kernel).permute(0, 2, 3, 1).flatten(1)
    return fitted


_CFG = {
    "url": "",  # no weights are published
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": None,
    "crop_pct": 0.875,  # as `datamodules.ImageNetDataModule` evaluates
    "interpolation": "bicubic",
    "fixed_input_size": False,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "encoder.projection",
    "classifier": "head",
    "paper_ids": "arXiv:2512.23824",
}
# timm looks up this name in the module of a model.
default_cfgs = generate_default_cfgs({f"msssm_{kind}": _CFG for kind in ("s6_tiny", "s6_small", "s4_tiny", "s4_small")})


def _create(variant: str, pretrained: bool, options: dict[str, Any]) -> TimmImageModel:
    model: TimmImageModel = build_model_with_cfg(
        TimmImageModel,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": options.pop("out_indices", 3), "feature_cls": "getter"},
        **options,
    )
    return model


@register_model
def msssm_s6_tiny(pretrained: bool = False, **kwargs: Any) -> TimmImageModel:
    """12 x 192, 16 x 16 patches."""
    return _create("msssm_s6_tiny", pretrained, {"ssm": "s6", "embed_dim": 192, "depth": 12, **kwargs})


@register_model
def msssm_s6_small(pretrained: bool = False, **kwargs: Any) -> TimmImageModel:
    """The paper's ImageNet model: 24 x 256, 16 x 16 patches."""
    return _create("msssm_s6_small", pretrained, {"ssm": "s6", "embed_dim": 256, "depth": 24, **kwargs})


@register_model
def msssm_s4_tiny(pretrained: bool = False, **kwargs: Any) -> TimmImageModel:
    """12 x 192, 16 x 16 patches."""
    return _create("msssm_s4_tiny", pretrained, {"ssm": "s4", "embed_dim": 192, "depth": 12, **kwargs})


@register_model
def msssm_s4_small(pretrained: bool = False, **kwargs: Any) -> TimmImageModel:
    """The paper's ImageNet model with time-invariant state space models: 24 x 256, 16 x 16 patches."""
    return _create("msssm_s4_small", pretrained, {"ssm": "s4", "embed_dim": 256, "depth": 24, **kwargs})


class ViT(SequenceLayer):
    """Vision Transformer of timm's own blocks as a backbone (Dosovitskiy et al. 2021, section 3.1), a baseline.

    Every position sees every other one, so there is no state to stream. It does not know the order of its positions:
    give it a position embedding.

    Args:
        d_model: D, width.
        n_layers: number of blocks.
        heads: heads of the attention; they divide D.
        mlp_ratio: width of the MLP / D.
        dropout: probability that an entry is dropped after the attention, and after both layers of the MLP.
        drop_path: stochastic depth of the last block; those before it have rates that grow linearly from 0.
    """

    def __init__(
        self,
        d_model: int = 192,
        n_layers: int = 12,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        """Builds the blocks with timm's initial weights. Raises ValueError for an option out of its range."""
        super().__init__(d_model)
        if n_layers < 1:
            raise InputError(f"n_layers must be at least 1, got {n_layers}")
        if heads < 1 or d_model % heads:
            raise InputError(f"heads must divide d_model = {d_model}, got heads = {heads}")
        rates = torch.linspace(0, drop_path, n_layers).tolist()
        self.blocks = nn.ModuleList(
            ViTBlock(d_model, heads, mlp_ratio, qkv_bias=True, proj_drop=dropout, drop_path=rate) for rate in rates
        )
        self.norm = LayerNorm(d_model)
        self.blocks.apply(partial(init_weights_vit_timm, needs_reset=False))

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: State | None = None, return_state: bool = False
    ) -> Tensor:
        """Maps x (B, L, D) to y (B, L, D). Raises ValueError for lengths, and for any use of a state."""
        if self.check_input(x, lengths) is not None:
            raise InputError("ViT takes rows of one length, got lengths; leave them out, or choose a msssm.Backbone")
        if state is not None or return_state:
            self._refuse()
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.norm(x)
        return y

    def initial_state(self, batch_size: int) -> NoReturn:
        """Raises ValueError: there is no state."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(
            "ViT sees the future, so it has no state to resume from: pass whole sequences, or stream a msssm.Backbone"
        )
