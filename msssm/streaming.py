"""A trained classifier, made fast for one sample after another."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from msssm.block import Block
from msssm.classifier import ClassifierState, SequenceClassifier
from msssm.multiscale import MultiScaleSSM
from msssm.native.stream import BlockParameters, PackedClassifier
from msssm.scan.dispatch import choose
from msssm.scan.step_size import MAX_DELTA, MIN_DELTA
from msssm.ssm import S6


class StreamingClassifier:
    """`SequenceClassifier.step` without gradients, from a copy of the weights as they are now.

    On a CPU in float32, a stack of multi-scale S6 layers takes one native call for everything behind the encoder; anything else goes
    through `SequenceClassifier.step`. Both give the logits of all positions so far, equal to those of the whole run.

    Args:
        model: in `eval()`.

    Raises:
        ValueError: the model is in training mode.
    """

    def __init__(self, model: SequenceClassifier) -> None:
        if model.training:
            raise ValueError("streaming needs a model in eval(), got one in training mode; call model.eval()")
        self.model = model
        self.packed = pack(model)

    @torch.inference_mode()
    def initial_state(self, batch_size: int) -> ClassifierState:
        """The state before the first position."""
        state = self.model.initial_state(batch_size)
        return state if self.packed is None else state._replace(backbone=self.packed.initial_state(batch_size))

    @torch.inference_mode()
    def step(self, x: Tensor, state: ClassifierState) -> tuple[Tensor, ClassifierState]:
        """One position: x (B,) or (B, channels) -> logits (B, num_classes) of all so far, and the new state.

        The state that is handed in is used up: its memory becomes that of the new one.
        """
        if self.packed is None:
            return self.model.step(x, state)
        # What the encoder returns may be its own, and the step uses it up.
        y = self.model.encoder(x).clone(memory_format=torch.contiguous_format)
        return self.packed.step(y, state.backbone, state.total, state.count), state


def pack(model: SequenceClassifier) -> PackedClassifier | None:
    """The model for the native step; None where that does not cover it."""
    parameters, kinds = [], set()
    for block in cast("Iterable[Block]", model.backbone.blocks):
        layer, norm = block.layer, block.norm.norm
        if not isinstance(layer, MultiScaleSSM) or not isinstance(layer.ssm, S6) or norm.weight is None:
            return None
        ssm, weight = layer.ssm, layer.ssm.log_rate
        if weight.dtype != torch.float32 or choose(ssm.backend, weight.device, weight.dtype) != "cpu":
            return None
        scale, shift, epsilon = _norm(norm)
        channel_mixer = None if block.channel_mixer is None else (block.channel_mixer.weight, block.channel_mixer.bias)
        parameters.append(BlockParameters(layer.step_parameters(), -ssm.A(), (scale, shift), channel_mixer))
        shapes = [None if tensor is None else tuple(tensor.shape) for tensor in parameters[-1].layer]
        kinds.add(
            (layer.mixer.heads, layer.mixer.mixer == "softmax", ssm.discretization == "zoh", block.prenorm, epsilon,
             channel_mixer is None, *shapes)
        )  # fmt: skip
    if len(kinds) != 1:
        return None
    heads, softmax, zoh, prenorm, epsilon, *_ = kinds.pop()
    last = None if model.backbone.norm is None else _norm(model.backbone.norm.norm)[:2]
    return PackedClassifier(
        parameters,
        last,
        (model.head.weight, model.head.bias),
        heads=heads,
        softmax=softmax,
        zoh=zoh,
        prenorm=prenorm,
        delta_limits=(MIN_DELTA, MAX_DELTA),
        epsilon=epsilon,
    )


def _norm(norm: nn.Module) -> tuple[Tensor, Tensor, float]:
    """Scale and shift (D,), and the epsilon of a layer norm; 0 for a batch norm, whose statistics are in them."""
    if isinstance(norm, nn.LayerNorm):
        return norm.weight, norm.bias, norm.eps
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale, 0.0
