"""Memory of each band in steps: from the parameters, and measured."""

from typing import NamedTuple

import torch
from torch import Tensor

from msssm.errors import InputError
from msssm.ssm import S4, S6


class BandMemory(NamedTuple):
    """Memory of each band in steps, each field (M,).

    Attributes:
        parameters: mean over channels and modes of 1 / (1 - |Abar|), at the step sizes of a zero input.
        measured: mean over rows and channels of sum_j |h_j| / max_j |h_j|, h the response to an impulse.
        tail: largest share of sum_j |h_j| in the last tenth of the steps; near 0 the sequence was long enough.
    """

    parameters: Tensor
    measured: Tensor
    tail: Tensor


@torch.no_grad()
def impulse_response(ssm: S6 | S4, x: Tensor, position: int = 0) -> Tensor:
    """Response of each band's state space model to a unit impulse in all channels of its band.

    Delta, B and C of "s6" stay those of `x`; only the input of the recurrence is replaced.

    Args:
        ssm: of M bands.
        x: (B, L, D) or (B, L, M, D), the layer's input of Delta, B and C.
        position: step of the impulse, 0..L-1.

    Returns:
        (B, M, L - position, D), from lag 0 on; lag 0 includes the learned skip.

    Raises:
        ValueError: the position is outside of the sequence.
    """
    batch, length, channels = x.shape[0], x.shape[1], x.shape[-1]
    if not 0 <= position < length:
        raise InputError(f"position must lie in 0..{length - 1}, got {position}")
    bands = len(ssm.diagonal())
    responses = []
    for band in range(bands):
        drive = x.new_zeros(batch, length, bands, channels)
        drive[:, position, band] = 1
        # The inputs of all other bands are zero: the output is this band's.
        responses.append(ssm(x, drive, x.new_ones(batch, length, bands, 1))[:, position:])
    return torch.stack(responses, dim=1)


def band_memory(ssm: S6 | S4, x: Tensor, position: int = 0) -> BandMemory:
    """Effective memory of each band, from the parameters and from its response to an impulse at `position` of `x`.

    For one mode, h_j = c r^j with r = exp(-1 / tau), or several of equal weights, both are
    1 / (1 - r) = tau + 1/2 + O(1 / tau). They differ if the input changes the step sizes, if C weights the modes
    unequally or lets them cancel, and if the sequence is shorter than the memory (`tail`).

    Arguments and errors are those of `impulse_response`.
    """
    response = impulse_response(ssm, x, position).abs()
    area, peak = response.sum(2), response.amax(2)
    heard = peak > 0
    measured = torch.where(heard, area / peak, 0).sum((0, 2)) / heard.sum((0, 2)).clamp(min=1)
    late = response[:, :, response.shape[2] - response.shape[2] // 10 :].sum((0, 2, 3))
    tail = late / area.sum((0, 2)).clamp(min=torch.finfo(area.dtype).tiny)
    return BandMemory(ssm.effective_memory(), measured, tail)
