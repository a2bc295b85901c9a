"""The scale mixer's distribution over the bands, and when it is a sign of failure."""

from typing import NamedTuple

import torch
from torch import Tensor

# exp(entropy) is the number of bands in effect: 1 when one band has all the weight, M when all have the same.
COLLAPSED = 1.2  # fewer bands in effect: one has about 96 % of the weight
UNIFORM = 0.99  # a larger share of the M bands in effect, ...
CONSTANT = 0.01  # ... while no band's share moves more than this between steps (standard deviation)


class MixerReport(NamedTuple):
    """Statistics of one mixer on one input.

    Attributes:
        mean: (M,) share of each band, mean over rows, steps and heads.
        spread: (M,) standard deviation of the share over rows and steps, mean over heads.
        effective_bands: exp of the entropy of the shares, mean over rows, steps and heads; 1..M.
        collapsed: `effective_bands` < COLLAPSED: the mixer uses one scale alone.
        uniform: `effective_bands` > UNIFORM M and every `spread` < CONSTANT: the mixer does not select. The plain sum
            is uniform by definition, and so is a mixer that has not yet learned.
    """

    mean: Tensor
    spread: Tensor
    effective_bands: float
    collapsed: bool
    uniform: bool


def mixer_shares(weights: Tensor) -> Tensor:
    """Shares |E_t[s]| / sum_r |E_t[r]| of weights (..., M, H); equal shares if all weights are 0."""
    size = weights.abs()
    total = size.sum(-2, keepdim=True)
    return torch.where(total > 0, size / total, 1 / weights.shape[-2])


def mixer_report(weights: Tensor) -> MixerReport:
    """Statistics and failure signs of weights (..., M, H) at true positions.

    The paper's mixer is linear, without a softmax: its weights may be negative and need not sum to 1. Shares of |E|
    replace them.
    """
    shares = mixer_shares(weights.detach().to(torch.promote_types(torch.float32, weights.dtype))).flatten(0, -3)
    bands = shares.shape[1]
    entropy = torch.special.entr(shares).sum(1)
    effective = entropy.exp().mean().item()
    spread = shares.std(0, correction=0).mean(1)
    uniform = effective > UNIFORM * bands and spread.max().item() < CONSTANT
    return MixerReport(shares.mean((0, 2)), spread, effective, effective < COLLAPSED, uniform)
