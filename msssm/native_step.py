"""One time step of a multi-scale layer as a single native call, for the configurations that have one."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from msssm.decomposition import MultiScaleDecomposition
from msssm.scale_mixer import ScaleMixer
from msssm.scan.cpu.step import StepParameters, fits, multiscale_step
from msssm.scan.dispatch import choose
from msssm.scan.step_size import MAX_DELTA, MIN_DELTA
from msssm.ssm import LOG_RATE_LIMITS, S6
from msssm.untouched import untouched

if TYPE_CHECKING:
    from msssm.multiscale import MultiScaleSSM, MultiScaleState


def native_step(
    layer: "MultiScaleSSM", x: Tensor, state: "MultiScaleState"
) -> tuple[Tensor, tuple[Tensor, ...], Tensor] | None:
    """Runs one step, x (B, D) to y (B, D) and both new states, or returns None if there is no native step for it.

    There is one in float32 on a CPU, without gradients, autocast or tracing.
    """
    conv_state, ssm_state = state
    if (
        ssm_state is None
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled(x.device.type)
        or x.dtype != torch.float32
        or choose(layer.backend, x.device, x.dtype) != "cpu"
        or (parameters := step_parameters(layer)) is None
        or not fits(x, conv_state, ssm_state, parameters)
    ):
        return None
    return multiscale_step(
        x,
        conv_state,
        ssm_state,
        parameters,
        heads=layer.mixer.heads,
        softmax=layer.mixer.mode == "softmax",
        zoh=layer.ssm.discretization == "zoh",
        normed=bool(layer.ssm.selection_norm),
        delta_limits=(MIN_DELTA, MAX_DELTA),
        log_rate_limits=LOG_RATE_LIMITS,
    )


def step_parameters(layer: "MultiScaleSSM") -> StepParameters | None:
    """Parameters for the native step, or None if this configuration has none.

    It covers ssm="s6" with the paper's inputs, as long as every module is `untouched`.
    """
    ssm, decomposition, mixer = layer.ssm, layer.decomposition, layer.mixer
    if not (
        (layer.selective_input, layer.ssm_input) == ("input", "band")
        and isinstance(ssm, S6)
        and isinstance(decomposition, MultiScaleDecomposition)
        and untouched(decomposition, MultiScaleDecomposition)
        and untouched(ssm, S6)
        and untouched(ssm.projection, nn.Linear)
        and untouched(mixer, ScaleMixer)
        and (mixer.mode not in ("input", "softmax") or untouched(mixer.projection, nn.Linear))
    ):
        return None
    low, high = decomposition.step_parameters()
    projection, delta_weight, delta_bias, log_rate, skip = ssm.step_parameters()
    mix = mixer.step_parameters()
    parameters = StepParameters(low, high, projection, delta_weight, delta_bias, log_rate, skip, *mix)
    return parameters if ssm.projection.bias is None and parameters.readable(mixer.heads) else None
