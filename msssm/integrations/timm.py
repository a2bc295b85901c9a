"""MS-SSM image models in timm's registry.

Run `import msssm.integrations.timm` once; then `timm.create_model("msssm_s6_small")`.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, cast

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from msssm.backbone import Backbone
from msssm.bidirectional import Bidirectional
from msssm.block import Block
from msssm.errors import InputError
from msssm.image import PatchEmbedding, ScanOrder
from msssm.layer import SequenceLayer
from msssm.multiscale import MultiScaleSSM
from msssm.param_groups import param_groups

Pool = Literal["avg", "last", ""]


class TimmImageModel(nn.Module):
    """Image classifier with timm's interface and option names: patches, backbone, pooling, linear head.

    Args:
        ssm: "s6", "s4" or "none", see `MultiScaleSSM`.
        img_size: H and W of the images (B, C, H, W); without `pos_embed`, any multiple of the patch.
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
        scan_order: "raster" or "snake".
        pos_embed: a learned position embedding.
        bidirectional: a second layer per block, over the reversed patches.
    """

    def __init__(
        self,
        ssm: Literal["s6", "s4", "none"] = "s6",
        img_size: int = 224,
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
        scan_order: ScanOrder = "raster",
        pos_embed: bool = False,
        bidirectional: bool = False,
    ) -> None:
        """Builds embedding, backbone and head. Raises ValueError for an option out of its range."""
        super().__init__()
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        layer: Callable[[int], SequenceLayer] = partial(
            MultiScaleSSM, levels=levels, kernel_size=kernel_size, state_size=state_size, ssm=ssm
        )
        if bidirectional:
            layer = partial(Bidirectional, layer=layer)
        self.embedding = PatchEmbedding(img_size, patch_size, in_chans, embed_dim, scan_order, pos_embed)
        self.backbone = Backbone(layer, embed_dim, depth, norm="layer", prenorm=True, dropout=proj_drop_rate)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

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


def _cfg() -> dict[str, Any]:
    return {
        "url": "",  # no weights are published
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": False,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "embedding.projection",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs(
    {name: _cfg() for name in ("msssm_s6_tiny", "msssm_s6_small", "msssm_s4_tiny", "msssm_s4_small")}
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> TimmImageModel:
    if kwargs.get("features_only"):
        raise RuntimeError(f"{variant} has one resolution, so no pyramid for features_only; use forward_features")
    if pretrained:
        raise RuntimeError(f"no weights are published for {variant}; use pretrained=False or checkpoint_path")
    model: TimmImageModel = build_model_with_cfg(TimmImageModel, variant, pretrained, **kwargs)
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
