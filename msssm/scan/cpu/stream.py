"""One time step of a classifier with multi-scale S6 layers in a single native call."""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from msssm.errors import InputError
from msssm.scan.cpu.library import integers, native, pointer
from msssm.scan.cpu.step import StepParameters
from msssm.transforms import transformed


class BlockParameters(NamedTuple):
    """Parameters of one residual block, float32."""

    layer: StepParameters
    rate: Tensor  # (M, D, N), -A
    norm: tuple[Tensor, Tensor]  # scale and shift (D,)
    glu: tuple[Tensor, Tensor] | None  # (2D, D), (2D,)


class BlockOptions(NamedTuple):
    """Options that all blocks share, besides the shapes of their parameters."""

    heads: int  # of the mixer
    softmax: bool  # of the mixer
    zoh: bool
    normed: bool  # Delta's low rank, B and C are divided by their root mean squares
    prenorm: bool  # normalise before the layer, instead of after the residual sum
    epsilon: float  # of a layer norm; 0 if the norm is only a scale and a shift


class PackedClassifier:
    """Copy of the weights of all blocks and of the head, in the order in which a step reads them.

    Args:
        blocks: parameters of each block, all of the same shapes.
        norm: scale and shift (D,) of the norm after the last block, in a stack with `prenorm`.
        head: weight (classes, D) and bias of the linear head.
        options: shared by all blocks.
        delta_limits: smallest and largest step size.
    """

    def __init__(
        self,
        blocks: Sequence[BlockParameters],
        norm: tuple[Tensor, Tensor] | None,
        head: tuple[Tensor, Tensor],
        options: BlockOptions,
        delta_limits: tuple[float, float],
    ) -> None:
        """Copies the weights."""
        first, prenorm = blocks[0], options.prenorm
        levels, taps, channels = first.layer.low.shape
        bands, _, states = first.rate.shape
        rank = first.layer.delta_weight.shape[1]
        mixing = (
            3 if options.softmax else 2 if first.layer.mix_weight is not None else int(first.layer.fixed is not None)
        )
        past = (taps - 1) * (2**levels - 1)
        self._state_shape = len(blocks), past + bands * states, channels
        tensors = [tensor for block in blocks for tensor in _in_order(block, prenorm)]
        self._weights = torch.cat([_padded(tensor) for tensor in (*tensors, *(norm or ()), *head)])
        self._classes = len(head[1])
        self._sizes = integers(
            0, len(blocks), levels, taps, channels, states, rank, options.heads, int(options.zoh), mixing,
            int(first.layer.skip is not None), int(first.glu is not None), int(prenorm), self._classes,
            int(options.normed),
        )  # fmt: skip
        self._values = (ctypes.c_float * 3)(*delta_limits, options.epsilon)
        self._step = native().msssm_stream
        self._pointer = pointer(self._weights)

    def initial_state(self, batch_size: int) -> Tensor:
        """Zeros, (B, blocks, rows of histories and states, D)."""
        return torch.zeros(batch_size, *self._state_shape)

    def step(self, x: Tensor, state: Tensor, total: Tensor, count: Tensor) -> Tensor:
        """Maps the encoder's output x (B, D) to logits (B, classes) of the mean over all steps so far.

        Overwrites x, and updates in place the state and the mean's total (B, D) float64 and count (B,) int64.

        Raises:
            InputError: a transform of `torch.func` is active, or a tensor is of another kind.
        """
        if transformed():
            raise InputError("streaming does not support transforms of torch.func: use SequenceClassifier.step")
        batch, (_, _, channels) = len(x), self._state_shape
        for name, given, shape, dtype in (
            ("encoder's output", x, (batch, channels), torch.float32),
            ("state", state, (batch, *self._state_shape), torch.float32),
            ("total", total, (batch, channels), torch.float64),
            ("number of positions", count, (batch,), torch.int64),
        ):
            kind = given.shape == shape and given.dtype == dtype and given.is_cpu
            if not kind or not given.is_contiguous() or given.is_neg():
                raise InputError(
                    f"streaming: the {name} must be contiguous {dtype} of shape {shape} on the CPU, got {given.dtype} "
                    f"of shape {tuple(given.shape)} on {given.device}; start from StreamingClassifier.initial_state"
                )
        self._sizes[0] = batch
        logits = x.new_empty(batch, self._classes)
        self._step(self._sizes, self._values, self._pointer, *map(pointer, (state, total, count, x, logits)))
        return logits


def _in_order(block: BlockParameters, prenorm: bool) -> list[Tensor]:
    layer, norm = block.layer, list(block.norm)
    mixer = [tensor for tensor in (layer.mix_weight, layer.mix_bias, layer.fixed) if tensor is not None]
    skip = [] if layer.skip is None else [layer.skip]
    recurrence = [layer.delta_weight, layer.delta_bias, block.rate.transpose(1, 2), *skip]
    after = [*(block.glu or ()), *([] if prenorm else norm)]
    return [*(norm if prenorm else []), layer.low, layer.high, *mixer, layer.projection, *recurrence, *after]


def _padded(tensor: Tensor) -> Tensor:
    """Flattens a tensor and pads it to a multiple of 16 numbers, so that each starts on a cache line."""
    flat = tensor.detach().float().flatten()
    return F.pad(flat, (0, -len(flat) % 16))
