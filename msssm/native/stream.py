"""A stack of residual blocks around multi-scale S6 layers, one time step in one native call."""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from msssm.native.library import integers, native
from msssm.native.step import StepParameters


class BlockParameters(NamedTuple):
    """Of one residual block, float32: the layer's, and what stands around it."""

    layer: StepParameters
    rate: Tensor  # (M, D, N), -A
    norm: tuple[Tensor, Tensor]  # scale and shift (D,)
    channel_mixer: tuple[Tensor, Tensor] | None  # (2D, D), (2D,)


class PackedBlocks:
    """Copies of the weights of some blocks that are alike, in the order in which a step reads them.

    Args:
        blocks: their parameters.
        heads: of the mixer.
        softmax: of the mixer.
        zoh: discretization.
        prenorm: normalise before the layer, instead of after the residual sum.
        delta_limits: least and greatest step size.
        epsilon: of a layer norm; 0 where the norm is a scale and a shift.
    """

    def __init__(
        self,
        blocks: Sequence[BlockParameters],
        *,
        heads: int,
        softmax: bool,
        zoh: bool,
        prenorm: bool,
        delta_limits: tuple[float, float],
        epsilon: float,
    ) -> None:
        first = blocks[0]
        levels, taps, channels = first.layer.low.shape
        bands, _, states = first.rate.shape
        mixing = 3 if softmax else 2 if first.layer.mix_weight is not None else int(first.layer.fixed is not None)
        past = (taps - 1) * (2**levels - 1)
        self._state_shape = len(blocks), past + bands * states, channels
        self._weights = torch.cat([_padded(tensor) for block in blocks for tensor in _in_order(block, prenorm)])
        self._sizes = integers(
            0, len(blocks), levels, taps, channels, states, first.layer.delta_weight.shape[1], heads, int(zoh), mixing,
            int(first.layer.skip is not None), int(first.channel_mixer is not None), int(prenorm),
        )  # fmt: skip
        self._values = (ctypes.c_float * 3)(*delta_limits, epsilon)
        self._step = native().msssm_stream
        self._pointer = ctypes.c_void_p(self._weights.data_ptr())

    def initial_state(self, batch_size: int) -> Tensor:
        """(B, blocks, rows of histories and states, D)."""
        return torch.zeros(batch_size, *self._state_shape)

    def step(self, x: Tensor, state: Tensor) -> None:
        """x (B, D), contiguous, becomes the output of the last block, and the state that of the next step."""
        self._sizes[0] = len(x)
        self._step(
            self._sizes, self._values, self._pointer, ctypes.c_void_p(state.data_ptr()), ctypes.c_void_p(x.data_ptr())
        )


def _in_order(block: BlockParameters, prenorm: bool) -> list[Tensor]:
    layer, norm = block.layer, list(block.norm)
    mixer = [tensor for tensor in (layer.mix_weight, layer.mix_bias, layer.fixed) if tensor is not None]
    skip = [] if layer.skip is None else [layer.skip]
    recurrence = [layer.delta_weight, layer.delta_bias, block.rate.transpose(1, 2), *skip]
    behind = [*(block.channel_mixer or ()), *([] if prenorm else norm)]
    return [*(norm if prenorm else []), layer.low, layer.high, *mixer, layer.projection, *recurrence, *behind]


def _padded(tensor: Tensor) -> Tensor:
    """Flat, and filled up to a multiple of 16 numbers, so that each begins on a cache line."""
    flat = tensor.detach().float().flatten()
    return F.pad(flat, (0, -len(flat) % 16))
