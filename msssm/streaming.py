"""Fast inference of a trained classifier, one sample after another."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from msssm.backbone import Backbone
from msssm.block import Block
from msssm.classifier import ClassifierState, SequenceClassifier
from msssm.errors import InputError
from msssm.multiscale import MultiScaleSSM
from msssm.native_step import step_parameters
from msssm.norm import SequenceNorm
from msssm.scan.cpu.stream import BlockOptions, BlockParameters, PackedClassifier
from msssm.scan.dispatch import choose
from msssm.scan.step_size import MAX_DELTA, MIN_DELTA
from msssm.ssm import S6
from msssm.untouched import plain, untouched


class StreamingClassifier:
    """Gradient-free `SequenceClassifier.step` of the model as it is now; create a new one after changing the model.

    On a CPU in float32, with mean pooling over multi-scale S6 layers, one native call on a copy of the weights computes
    everything after the encoder; any other model, one with adapters or hooks included, runs `SequenceClassifier.step`.
    Both give the logits of a run over all positions so far.

    Args:
        model: in `eval()`.
    """

    def __init__(self, model: SequenceClassifier) -> None:
        """Copies the weights if there is a native step. Raises ValueError if the model is in training mode."""
        if model.training:
            raise InputError("streaming needs a model in eval(), got one in training mode; call model.eval()")
        self.model = model
        self.packed = pack(model)

    @torch.inference_mode()
    def initial_state(self, batch_size: int) -> ClassifierState:
        """State before the first position."""
        state = self.model.initial_state(batch_size)
        return state if self.packed is None else state._replace(backbone=self.packed.initial_state(batch_size))

    @torch.inference_mode()
    def step(self, x: Tensor, state: ClassifierState) -> tuple[Tensor, ClassifierState]:
        """Runs one position: x (B,) or (B, channels) to logits (B, num_classes) of all so far, and the new state.

        The given state is overwritten: the new one uses its memory.
        """
        if self.packed is None:
            return self.model.step(x, state)
        # The step overwrites its input, which may be the encoder's own memory.
        y = self.model.encoder(x).clone(memory_format=torch.contiguous_format)
        return self.packed.step(y, state.backbone, state.total, state.positions), state


def pack(model: SequenceClassifier) -> PackedClassifier | None:
    """Packs the model for the native step; returns None if there is none for this configuration."""
    backbone, head = model.backbone, model.head
    if model.pooling != "mean" or not (untouched(model, SequenceClassifier) and untouched(backbone, Backbone)):
        return None
    if any(module.training for module in model.modules()) or not _linear(head):
        return None
    parameters, kinds = [], set()
    for block in cast("Iterable[Block]", backbone.blocks):
        layer, gate = block.layer, block.glu
        if not (untouched(block, Block) and (gate is None or _linear(gate)) and (found := _norm(block.norm))):
            return None
        if not untouched(layer, MultiScaleSSM) or (own := step_parameters(layer)) is None:
            return None
        ssm, (norm, epsilon) = cast(S6, layer.ssm), found
        if choose(ssm.backend, ssm.log_rate.device, torch.float32) != "cpu":
            return None
        mixer, zoh = layer.mixer, ssm.discretization == "zoh"
        options = BlockOptions(mixer.heads, mixer.mode == "softmax", zoh, ssm.selection_norm, block.prenorm, epsilon)
        linear = None if gate is None else (gate.weight, gate.bias)
        parameters.append(BlockParameters(own, -ssm.diagonal(), norm, linear))
        kinds.add((options, gate is None, *(None if tensor is None else tensor.shape for tensor in own)))
    if len(kinds) != 1:
        return None
    last = None
    if backbone.norm is not None:
        if (found := _norm(backbone.norm)) is None:
            return None
        last, _ = found
    return PackedClassifier(parameters, last, (head.weight, head.bias), options, (MIN_DELTA, MAX_DELTA))


def _linear(module: nn.Linear) -> bool:
    """Whether the module is an untouched linear map with a bias."""
    return (
        untouched(module, nn.Linear)
        and plain(module.weight, (module.out_features, module.in_features))
        and module.bias is not None
        and plain(module.bias, (module.out_features,))
    )


def _norm(norm: SequenceNorm) -> tuple[tuple[Tensor, Tensor], float] | None:
    """Scale and shift (D,) with the epsilon of a layer norm, or 0 for a batch norm, whose statistics are folded in.

    None for any other norm.
    """
    inner = norm.inner
    if not untouched(norm, SequenceNorm):
        return None
    if isinstance(inner, nn.LayerNorm) and untouched(inner, nn.LayerNorm) and inner.eps > 0:
        return ((inner.weight, inner.bias), inner.eps) if _vectors(inner.weight, inner.bias) else None
    if isinstance(inner, nn.BatchNorm1d) and untouched(inner, nn.BatchNorm1d):
        mean, variance = inner.running_mean, inner.running_var
        if mean is not None and variance is not None and _vectors(inner.weight, inner.bias, mean, variance):
            scale = inner.weight / torch.sqrt(variance + inner.eps)
            return (scale, inner.bias - mean * scale), 0.0
    return None


def _vectors(*tensors: Tensor | None) -> bool:
    return all(x is not None and plain(x, (len(x),)) for x in tensors)
