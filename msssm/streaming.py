"""A trained classifier, made fast for one sample after another."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from msssm.block import Block
from msssm.classifier import ClassifierState, SequenceClassifier
from msssm.errors import InputError
from msssm.multiscale import MultiScaleSSM
from msssm.native.stream import BlockOptions, BlockParameters, PackedClassifier
from msssm.scan.dispatch import choose
from msssm.scan.step_size import MAX_DELTA, MIN_DELTA
from msssm.ssm import S6


class StreamingClassifier:
    """`SequenceClassifier.step` without gradients, from a copy of the weights as they are now.

    On a CPU in float32, with the mean over a stack of multi-scale S6 layers, one native call does everything behind the
    encoder; anything else goes through `SequenceClassifier.step`. Either gives the logits of the whole run over all
    positions so far.

    Args:
        model: in `eval()`.

    Raises:
        ValueError: the model is in training mode.
    """

    def __init__(self, model: SequenceClassifier) -> None:
        if model.training:
            raise InputError("streaming needs a model in eval(), got one in training mode; call model.eval()")
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
        return self.packed.step(y, state.backbone, state.total, state.positions), state


def pack(model: SequenceClassifier) -> PackedClassifier | None:
    """The model for the native step; None where that does not cover it."""
    if model.pooling != "mean":
        return None
    parameters, kinds = [], set()
    for block in cast("Iterable[Block]", model.backbone.blocks):
        layer = block.layer
        if not isinstance(layer, MultiScaleSSM) or (own := layer.step_parameters()) is None:
            return None
        ssm, gate = cast(S6, layer.ssm), block.channel_mixer
        weight = ssm.log_rate
        if weight.dtype != torch.float32 or choose(ssm.backend, weight.device, weight.dtype) != "cpu":
            return None
        norm, epsilon = _norm(block.norm.norm)
        mixer, zoh = layer.mixer, ssm.discretization == "zoh"
        options = BlockOptions(mixer.heads, mixer.mixer == "softmax", zoh, block.prenorm, epsilon)
        linear = None if gate is None else (gate.weight, gate.bias)
        parameters.append(BlockParameters(own, -ssm.diagonal(), norm, linear))
        kinds.add((options, gate is None, *(None if tensor is None else tensor.shape for tensor in own)))
    if len(kinds) != 1:
        return None
    last = None if model.backbone.norm is None else _norm(model.backbone.norm.norm)[0]
    head = model.head.weight, model.head.bias
    return PackedClassifier(parameters, last, head, options, (MIN_DELTA, MAX_DELTA))


def _norm(norm: nn.Module) -> tuple[tuple[Tensor, Tensor], float]:
    """Scale and shift (D,), and the epsilon of a layer norm; 0 for a batch norm, whose statistics are in them."""
    if isinstance(norm, nn.LayerNorm):
        return (norm.weight, norm.bias), norm.eps
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return (scale, norm.bias - norm.running_mean * scale), 0.0
