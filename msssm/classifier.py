"""A sequence classifier: encoder, backbone, mean over the true positions, linear head."""

from torch import Tensor, nn

from msssm.backbone import Backbone
from msssm.padding import masked_mean


class SequenceClassifier(nn.Module):
    """Logits of whole sequences.

    Args:
        encoder: what makes (B, L, D) of the batch's x, for example `nn.Embedding` or `nn.Linear`.
        backbone: of width D.
        num_classes: outputs of the head.
    """

    def __init__(self, encoder: nn.Module, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.encoder, self.backbone = encoder, backbone
        self.head = nn.Linear(backbone.d_model, num_classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x (B, L) or (B, L, channels), lengths (B,) -> logits (B, num_classes)."""
        logits: Tensor = self.head(masked_mean(self.backbone(self.encoder(x), lengths), lengths))
        return logits
