"""Inference of a trained classifier on a signal as it arrives."""

import torch
from torch import Tensor

from msssm.classifier import ClassifierState, SequenceClassifier
from msssm.errors import InputError


class StreamingClassifier:
    """A `SequenceClassifier` that answers for a signal as it arrives, one position or one chunk after another.

    Both give the logits of a run over all positions so far. What depends on the parameters alone is computed once:
    create a new one after changing the model. Nothing is ever written to what calls share, so that several threads may
    use one, each with a state of its own.

    Args:
        model: Classifier in `eval()`.
    """

    def __init__(self, model: SequenceClassifier) -> None:
        """Computes the constants of a step. Raises ValueError if the model is in training mode."""
        if model.training:
            raise InputError("streaming needs a model in eval(), got one in training mode; call model.eval()")
        self.model = model
        with torch.no_grad():
            self.constants = model.step_constants()

    @torch.inference_mode()
    def initial_state(self, batch_size: int) -> ClassifierState:
        """State before the first position."""
        return self.model.initial_state(batch_size)

    @torch.inference_mode()
    def step(self, x: Tensor, state: ClassifierState) -> tuple[Tensor, ClassifierState]:
        """Runs one position: x (B,) or (B, channels) to logits (B, num_classes) of all so far, and the new state."""
        return self.model.step(x, state, self.constants)

    @torch.inference_mode()
    def feed(self, x: Tensor, state: ClassifierState) -> tuple[Tensor, ClassifierState]:
        """Runs a chunk of any length: x (B, T) or (B, T, channels) to the logits of all so far, and the new state."""
        logits, state = self.model(x, state=state, return_state=True)
        return logits, state
