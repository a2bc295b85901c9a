"""Decomposition and scan of a multi-scale layer in one native operator, for the configurations that have one.

The bands, (B, L, M, D), are as expensive to write and to read as the scan is to compute; there they stay in the cache.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from msssm.decomposition import MultiScaleDecomposition, plain_decomposition
from msssm.scan.checks import check_discretization
from msssm.scan.cpu.selective import Filters, Operands, multiscale_scan
from msssm.scan.dispatch import choose
from msssm.scan.selective import plain_selective
from msssm.scan.step_size import MAX_DELTA, MIN_DELTA
from msssm.ssm import S6
from msssm.transforms import plain_form
from msssm.untouched import untouched

if TYPE_CHECKING:
    from msssm.multiscale import MultiScaleSSM


def native_layer(
    layer: "MultiScaleSSM",
    x: Tensor,
    mix: Tensor,
    lengths: Tensor | None,
    conv_state: tuple[Tensor, ...] | None,
    ssm_state: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor] | None:
    """Maps x (B, L, D) and mix (B, L, M, H) to y (B, L, D) and the new states, or returns None if no operator does so.

    One does for ssm="s6" with the paper's inputs, in float32 on a CPU, as long as both modules are `untouched`.
    Without `return_state` the states hold no histories of the filters.
    """
    decomposition, ssm = layer.decomposition, layer.ssm
    if not (
        (layer.selective_input, layer.ssm_input) == ("input", "band")
        and untouched(decomposition, MultiScaleDecomposition)
        and untouched(ssm, S6)
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled(x.device.type)
        and choose(decomposition.backend, x.device, x.dtype) == choose(ssm.backend, x.device, x.dtype) == "cpu"
    ):
        return None
    check_discretization(ssm.discretization)
    low, high = decomposition.step_parameters()
    low_rank, B, C = ssm.selection(x)
    operands = (x, low_rank, ssm.diagonal(), B, C, mix, ssm.skip, ssm.delta_weight, ssm.delta_bias, lengths, ssm_state)
    filters = low, high, decomposition.joined(conv_state, x)
    if not _fits(ssm, *operands, *filters):
        return None
    y, last, history = multiscale_scan(
        Operands(*operands), ssm.discretization, (MIN_DELTA, MAX_DELTA), Filters(*filters), return_state
    )
    return y, decomposition.separated(history) if return_state else (), last


def _fits(ssm: S6, x: Tensor, *others: Tensor | None) -> bool:
    """Whether the operator takes the tensors as they are. The separate operators convert others, or refuse them."""
    mix, lengths, state = others[4], others[8], others[9]
    return (
        all(each is None or each is lengths or each.dtype == torch.float32 for each in others)
        and mix is not None
        and mix.shape[:-1] == (*x.shape[:2], ssm.bands)
        and x.shape[2] % mix.shape[-1] == 0
        and (state is None or state.shape == (len(x), *ssm.log_rate.shape))
    )


@plain_form("msssm::filtered_selective")
def _(*arguments: Any) -> tuple[Tensor, ...]:
    """Plain form of the native operator with filters: decomposition and scan one after the other."""
    x, *others, low, high, history, return_state = arguments
    bands, past = plain_decomposition(x, low, high, history, others[8], return_state)
    return *plain_selective(bands, *others), past
