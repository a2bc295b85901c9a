"""A sequence classifier: encoder, backbone, pooling over the true positions, linear head."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from msssm.errors import InputError
from msssm.layer import SequenceLayer, State
from msssm.padding import last_position, mask_padding, masked_mean, true_lengths
from msssm.untouched import untouched

Pooling = Literal["mean", "last"]


class ClassifierState(NamedTuple):
    """State after the positions so far.

    Attributes:
        backbone: state of the backbone.
        total: (B, D), sum of the backbone's outputs, or the last output, by `pooling`. In float64, since a sum in
            float32 stops growing after about 10^7 positions.
        positions: (B,) int64, number of true positions so far.
    """

    backbone: State
    total: Tensor
    positions: Tensor


class SequenceClassifier(nn.Module):
    """Classifier of whole sequences, of sequences in chunks, or of one position after another.

    Args:
        encoder: maps the batch's x to (B, L, D) position by position, for example `nn.Embedding` or `nn.Linear`.
        backbone: a stack of layers of width D, `Backbone`, or any other sequence layer.
        num_classes: outputs of the head.
        pooling: what the head reads: the "mean" over the true positions, or the "last" of them.
    """

    def __init__(
        self, encoder: nn.Module, backbone: SequenceLayer, num_classes: int, pooling: Pooling = "mean"
    ) -> None:
        """Adds a linear head. Raises ValueError for an unknown pooling."""
        super().__init__()
        if pooling not in ("mean", "last"):
            raise InputError(f"pooling must be 'mean' or 'last', got {pooling!r}")
        self.pooling = pooling
        self.encoder, self.backbone = encoder, backbone
        self.head: nn.Module = nn.Linear(backbone.d_model, num_classes)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        state: ClassifierState | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, ClassifierState]:
        """Maps x (B, L) or (B, L, channels), lengths (B,), to logits (B, num_classes), and the state if asked.

        Given the state of earlier chunks, the logits are those of all positions since the first chunk.
        """
        lengths = true_lengths(lengths, x)
        # Before the encoder, the gradient of whose weights is a product with x, NaN in the padding included.
        encoded = self.encoder(mask_padding(x, lengths) if x.is_floating_point() else x)
        if state is None and not return_state:
            pool = masked_mean if self.pooling == "mean" else last_position
            return self.head(pool(self.backbone(encoded, lengths), lengths))
        state = self.initial_state(len(x)) if state is None else state
        y, backbone = self.backbone(encoded, lengths, state.backbone, return_state=True)
        if self.pooling == "mean":
            total = state.total + mask_padding(y, lengths).sum(1, dtype=torch.float64)
        else:
            total = last_position(y, lengths).double()
            if lengths is not None:
                total = torch.where((lengths > 0).unsqueeze(1), total, state.total)
        after = ClassifierState(backbone, total, state.positions + (x.shape[1] if lengths is None else lengths))
        logits = self.classify(after.total, after.positions)
        return (logits, after) if return_state else logits

    def initial_state(self, batch_size: int) -> ClassifierState:
        """State before the first position."""
        total = self._parameter().new_zeros(batch_size, self.backbone.d_model, dtype=torch.float64)
        return ClassifierState(self.backbone.initial_state(batch_size), total, total.new_zeros(batch_size).long())

    def step_constants(self) -> Any:
        """Constants of the backbone's steps, see `SequenceLayer.step_constants`."""
        return self.backbone.step_constants()

    def step(self, x: Tensor, state: ClassifierState, constants: Any = None) -> tuple[Tensor, ClassifierState]:
        """Runs one position: x (B,) or (B, channels) to logits (B, num_classes) of all so far, and the new state."""
        if not untouched(self, SequenceClassifier):
            logits, state = self(x.unsqueeze(1), state=state, return_state=True)
            return logits, state
        given = (self.encoder(x), state.backbone) if constants is None else (self.encoder(x), state.backbone, constants)
        y, backbone = self.backbone.step(*given)
        total = state.total + y if self.pooling == "mean" else y.double()
        after = ClassifierState(backbone, total, state.positions + 1)
        return self.classify(after.total, after.positions), after

    def classify(self, total: Tensor, positions: Tensor) -> Tensor:
        """Computes logits (B, num_classes) from a state's `total` (B, D) and `positions` (B,)."""
        pooled = total / positions.clamp(min=1).unsqueeze(1) if self.pooling == "mean" else total
        logits: Tensor = self.head(pooled.to(self._parameter().dtype))
        return logits

    def _parameter(self) -> Tensor:
        """A parameter of the backbone, for device and dtype: adapters and quantisation may have replaced the head's."""
        return next(x for x in self.backbone.parameters() if x.is_floating_point())
