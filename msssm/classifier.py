"""A sequence classifier: encoder, backbone, mean over the true positions or the last of them, linear head."""

from typing import Literal

from torch import Tensor, nn

from msssm.backbone import Backbone
from msssm.padding import last_position, masked_mean

Pooling = Literal["mean", "last"]


class SequenceClassifier(nn.Module):
    """Logits of whole sequences.

    Args:
        encoder: what makes (B, L, D) of the batch's x, for example `nn.Embedding` or `nn.Linear`.
        backbone: of width D.
        num_classes: outputs of the head.
        pooling: what the head reads: the "mean" over the true positions, or the "last" of them.

    Raises:
        ValueError: an unknown pooling.
    """

    def __init__(self, encoder: nn.Module, backbone: Backbone, num_classes: int, pooling: Pooling = "mean") -> None:
        super().__init__()
        if pooling not in ("mean", "last"):
            raise ValueError(f"pooling must be 'mean' or 'last', got {pooling!r}")
        self.pooling = pooling
        self.encoder, self.backbone = encoder, backbone
        self.head = nn.Linear(backbone.d_model, num_classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x (B, L) or (B, L, channels), lengths (B,) -> logits (B, num_classes)."""
        pool = masked_mean if self.pooling == "mean" else last_position
        logits: Tensor = self.head(pool(self.backbone(self.encoder(x), lengths), lengths))
        return logits
