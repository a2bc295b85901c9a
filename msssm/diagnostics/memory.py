"""How many steps each band remembers: from the parameters, and measured."""

from typing import NamedTuple

import torch
from torch import Tensor

from msssm.errors import InputError
from msssm.ssm import S4, S6


class BandMemory(NamedTuple):
    """Steps per band, each (M,).

    Attributes:
        parameters: mean over channels and modes of 1 / (1 - |Abar|), at the step sizes of a zero input.
        measured: mean over rows and channels of sum_j |h_j| / max_j |h_j|, h the response to an impulse.
        disagreement: measured / parameters.
        tail: largest share of sum_j |h_j| in the last tenth of the steps; near 0 the sequence was long enough.
    """

    parameters: Tensor
    measured: Tensor
    disagreement: Tensor
    tail: Tensor


@torch.no_grad()
def impulse_response(ssm: S6 | S4, x: Tensor, position: int = 0) -> Tensor:
    """What each band's state space model makes of one unit impulse in all channels of its band.

    The gates (step sizes, B and C of "s6") are those of `x` throughout; only what drives the recurrence is replaced.

    Args:
        ssm: of M bands.
        x: (B, L, D) or (B, L, M, D), what the layer gives the gates to see.
        position: step of the impulse, 0..L-1.

    Returns:
        (B, M, L - position, D), lag first 0; the learned skip is part of lag 0.

    Raises:
        ValueError: a position outside of the sequence.
    """
    batch, length, channels = x.shape[0], x.shape[1], x.shape[-1]
    if not 0 <= position < length:
        raise InputError(f"position must lie in 0..{length - 1}, got {position}")
    bands = len(ssm.diagonal())
    responses = []
    for band in range(bands):
        drive = x.new_zeros(batch, length, bands, channels)
        drive[:, position, band] = 1
        # The other bands are silent: whatever reaches the output is this band's.
        responses.append(ssm(x, drive, x.new_ones(batch, length, bands, 1))[:, position:])
    return torch.stack(responses, dim=1)


def band_memory(ssm: S6 | S4, x: Tensor, position: int = 0) -> BandMemory:
    """Effective memory of each band, as the parameters give it and as an impulse at `position` of `x` meets it.

    For one mode, h_j = c r^j with r = exp(-1 / tau), both are 1 / (1 - r) = tau + 1/2 + O(1 / tau); so they are for
    several modes of equal weights. They differ where the input moves the step sizes, where C weighs the modes
    unequally or lets them cancel, and where the sequence is shorter than the memory (`tail`).

    Args, raises: as `impulse_response`.
    """
    response = impulse_response(ssm, x, position).abs()
    area, peak = response.sum(2), response.amax(2)
    heard = peak > 0
    measured = torch.where(heard, area / peak, 0).sum((0, 2)) / heard.sum((0, 2)).clamp(min=1)
    late = response[:, :, response.shape[2] - response.shape[2] // 10 :].sum((0, 2, 3))
    tail = late / area.sum((0, 2)).clamp(min=torch.finfo(area.dtype).tiny)
    parameters = ssm.effective_memory()
    return BandMemory(parameters, measured, measured / parameters, tail)
