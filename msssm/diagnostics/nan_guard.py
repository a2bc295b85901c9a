"""A guard that names where a network first stops being finite: layer, band, step."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from msssm.errors import NonFiniteError
from msssm.layer import SequenceLayer
from msssm.multiscale import MultiScaleSSM
from msssm.padding import mask_padding
from msssm.ssm import NoSSM

_REMEDY = "try a lower lr or ssm_lr, or clip gradients"


@contextmanager
def nan_guard(model: nn.Module) -> Iterator[None]:
    """Checks the output of every sequence layer of `model` within the true lengths, as long as the context lasts.

    The checks change no values, and cost one pass over each output; on a GPU they also synchronise.

    Raises:
        FloatingPointError: a layer's output is not finite (raised from the forward). The message names the layer by its
            path in `model`, the first step, its row, and for a `MultiScaleSSM` the band, found by running each band
            alone. An input that was not finite is reported as such.
    """
    hooks = [
        module.register_forward_hook(_Check(path or type(model).__name__), with_kwargs=True)
        for path, module in model.named_modules()
        if isinstance(module, SequenceLayer)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def band_name(band: int, bands: int) -> str:
    """Name of a band, finest first: "input", "detail 1" .. "detail S", "approximation"."""
    return "input" if band == 0 else "approximation" if band == bands - 1 else f"detail {band}"


class _Check:
    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = dict(zip(("x", "lengths", "state", "return_state"), args, strict=False)) | kwargs
        x, lengths, state = given["x"], given.get("lengths"), given.get("state")
        y = output[0] if isinstance(output, tuple) else output
        if _finite(mask_padding(y, lengths)):
            return
        with torch.no_grad():
            if (place := _first(mask_padding(x, lengths))) is not None:
                raise NonFiniteError(f"the input of layer {self.path} is {place}; check the data, or the layer before")
            name = type(module).__name__
            where = _band(module, x, lengths, state) if isinstance(module, MultiScaleSSM) else None
            where = where or f"its output is {_first(mask_padding(y, lengths))}; {_REMEDY}"
        raise NonFiniteError(f"layer {self.path} ({name}): {where}")


def _band(layer: MultiScaleSSM, x: Tensor, lengths: Tensor | None, state: Any) -> str | None:
    """Describes which band fails first in time, and in which part of the layer; None if each band alone is finite."""
    x = mask_padding(x, lengths)
    conv_state, ssm_state = (None, None) if state is None else state
    bands = layer.decomposition(x, lengths, conv_state)
    mix = layer.mixer(x)
    count = bands.shape[2]
    found = []
    for band in range(count):
        parts = {
            "the decomposition": bands[:, :, band],
            "its weight in the scale mixer": mix[:, :, band],
            "its state space model": _alone(layer, x, bands, mix, lengths, ssm_state, band),
        }
        for part, values in parts.items():
            place = _place(mask_padding(values, lengths))
            if place is not None:
                found.append((place[0], band, place[1], part))
                break
    if not found:
        return None
    step, band, row, part = min(found)
    others = f" ({len(found)} of {count} bands fail)" if len(found) > 1 else ""
    named = _parameters(layer, band)
    cause = f"its {named} is not finite, since an earlier update; " if named else ""
    return (
        f"band {band} ({band_name(band, count)}) is not finite from step {step} of row {row} on, "
        f"in {part}{others}; {cause}{_REMEDY}"
    )


def _alone(
    layer: MultiScaleSSM,
    x: Tensor,
    bands: Tensor,
    mix: Tensor,
    lengths: Tensor | None,
    state: Tensor | None,
    band: int,
) -> Tensor:
    """Mixed output (B, L, D) of one band's state space model."""
    one = slice(band, band + 1)
    if isinstance(layer.ssm, NoSSM):
        return layer.ssm(x, bands[:, :, one], mix[:, :, one], lengths)
    single = copy.copy(layer.ssm)
    single.bands = 1
    parameters = {name: _of_band(p, band, bands.shape[2]) for name, p in layer.ssm.named_parameters()}
    seen, driven = layer.ssm_inputs(x, bands)
    given = (
        seen if seen.ndim == 3 else seen[:, :, one],
        driven[:, :, one],
        mix[:, :, one],
        lengths,
        None if state is None else state[:, one],
    )
    y: Tensor = torch.func.functional_call(single, parameters, given)
    return y


def _of_band(parameter: Tensor, band: int, bands: int) -> Tensor:
    """One band's part of an SSM's parameter, whose first dimension has the bands outermost."""
    return parameter.unflatten(0, (bands, -1))[band]


def _parameters(layer: MultiScaleSSM, band: int) -> str | None:
    """Name of a parameter of the band that is not finite."""
    count = layer.decomposition.levels + 2
    shares = {name: _of_band(p, band, count) for name, p in layer.ssm.named_parameters()}
    return next((name for name, share in shares.items() if not _finite(share)), None)


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def _place(x: Tensor) -> tuple[int, int] | None:
    """Step and row of the first entry in time of x (B, L, ...) that is not finite, or None."""
    bad = ~torch.isfinite(x).flatten(2).all(-1)
    if not bad.any():
        return None
    step = int(bad.any(0).int().argmax())
    return step, int(bad[:, step].int().argmax())


def _first(x: Tensor) -> str | None:
    place = _place(x)
    return None if place is None else f"not finite from step {place[0]} of row {place[1]} on"
