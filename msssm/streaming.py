"""A trained classifier, made fast for one sample after another."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from msssm.block import Block
from msssm.classifier import ClassifierState, SequenceClassifier
from msssm.multiscale import MultiScaleSSM
from msssm.native.stream import BlockParameters, PackedBlocks
from msssm.scan.dispatch import choose
from msssm.scan.step_size import MAX_DELTA, MIN_DELTA
from msssm.ssm import S6


class StreamingClassifier:
    """`SequenceClassifier.step` without gradients, from a copy of the weights as they are now.

    On a CPU in float32, a stack of multi-scale S6 layers takes one native call for all its blocks; anything else goes
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
        self.blocks = pack(list(cast("Iterable[Block]", model.backbone.blocks)))

    @torch.inference_mode()
    def initial_state(self, batch_size: int) -> ClassifierState:
        """The state before the first position."""
        state = self.model.initial_state(batch_size)
        return state if self.blocks is None else state._replace(backbone=self.blocks.initial_state(batch_size))

    @torch.inference_mode()
    def step(self, x: Tensor, state: ClassifierState) -> tuple[Tensor, ClassifierState]:
        """One position: x (B,) or (B, channels) -> logits (B, num_classes) of all so far, and the new state.

        The state that is handed in is used up: its memory becomes that of the new one.
        """
        if self.blocks is None:
            return self.model.step(x, state)
        y = self.model.encoder(x).contiguous()
        self.blocks.step(y, state.backbone)
        if self.model.backbone.norm is not None:
            y = self.model.backbone.norm(y.unsqueeze(1)).squeeze(1)
        state.total.add_(y)
        state.count.add_(1)
        return self.model.classify(state.total, state.count), state


def pack(blocks: list[Block]) -> PackedBlocks | None:
    """The blocks for the native step; None where it does not cover them."""
    parameters, kinds = [], set()
    for block in blocks:
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
    limits = (MIN_DELTA, MAX_DELTA)
    return PackedBlocks(
        parameters, heads=heads, softmax=softmax, zoh=zoh, prenorm=prenorm, delta_limits=limits, epsilon=epsilon
    )


def _norm(norm: nn.Module) -> tuple[Tensor, Tensor, float]:
    """Scale and shift (D,), and the epsilon of a layer norm; 0 for a batch norm, whose statistics are in them."""
    if isinstance(norm, nn.LayerNorm):
        return norm.weight, norm.bias, norm.eps
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale, 0.0
