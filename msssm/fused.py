"""The one place where modules are replaced by one operator call.

A layer calls `fused_scan` in one line, and is plain torch below it. The bands, (B, L, M, D), are as expensive to write
and to read as the scan is to compute; in the fused operator they stay in the cache.
"""

import torch
from torch import Tensor, nn

from msssm.decomposition import MultiScaleDecomposition
from msssm.scan.checks import check_discretization
from msssm.scan.dispatch import choose
from msssm.scan.selective import cpu
from msssm.scan.selective.operands import Operands
from msssm.ssm import S6
from msssm.untouched import untouched


def fused_scan(
    decomposition: nn.Module,
    ssm: nn.Module,
    x: Tensor,
    mix: Tensor,
    lengths: Tensor | None,
    conv_state: tuple[Tensor, ...] | None,
    ssm_state: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor] | None:
    """Decomposes x (B, L, D), scans and mixes the bands in one operator, or returns None if there is none for them.

    There is one for a wavelet decomposition and S6 in float32 on a CPU, as long as both modules are `untouched`.

    Returns:
        y (B, L, D) and the new states; without `return_state` there are no histories of the filters.
    """
    if not (
        untouched(decomposition, MultiScaleDecomposition)
        and untouched(ssm, S6)
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled(x.device.type)
        and choose(decomposition.backend, x.device, x.dtype) == choose(ssm.backend, x.device, x.dtype) == "cpu"
    ):
        return None
    check_discretization(ssm.discretization)
    low_rank, B, C = ssm.selection(x)
    low, high = decomposition.filters()
    history = decomposition.joined(conv_state, x)
    operands = Operands(
        x, low_rank, ssm.diagonal(), B, C, mix, ssm.skip, ssm.delta_weight, ssm.delta_bias, lengths, ssm_state,
        low, high, history,
    )  # fmt: skip
    fits = (
        all(each is None or each is lengths or each.dtype == torch.float32 for each in operands)
        and mix.shape[:-1] == (*x.shape[:2], ssm.bands)
        and x.shape[2] % mix.shape[-1] == 0
        and (ssm_state is None or ssm_state.shape == (len(x), *ssm.log_rate.shape))
    )
    if not fits:  # the separate operators convert the operands, or refuse them
        return None
    y, last, past = cpu.scan(operands, ssm.discretization, return_state)
    return y, decomposition.separated(past) if return_state else (), last
