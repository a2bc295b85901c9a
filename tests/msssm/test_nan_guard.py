"""The guard names the layer, the band and the step that first ceased to be finite, and changes nothing else."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from msssm import Backbone, MultiScaleSSM
from msssm.baselines import S4D
from msssm.diagnostics.nan_guard import nan_guard

NAN, INF = float("nan"), float("inf")


def _backbone(**options: Any) -> Backbone:
    torch.manual_seed(0)
    return Backbone(partial(MultiScaleSSM, levels=3, state_size=4, **options), d_model=8, n_layers=2)


def _x(length: int = 12) -> Tensor:
    return torch.randn(3, length, 8, generator=torch.Generator().manual_seed(1))


def _layer(backbone: Backbone, index: int) -> MultiScaleSSM:
    layer = backbone.get_submodule(f"blocks.{index}.layer")
    assert isinstance(layer, MultiScaleSSM)
    return layer


def _message(backbone: Backbone, x: Tensor, lengths: Tensor | None = None, state: Any = None) -> str:
    with nan_guard(backbone), pytest.raises(FloatingPointError) as found:
        backbone(x, lengths, state)
    return str(found.value)


def _plant(backbone: Backbone, parameter: str, index: Any, value: float = NAN) -> None:
    with torch.no_grad():
        backbone.get_parameter(f"blocks.{parameter}")[index] = value


S6 = {"ssm": "s6"}
AT_ONCE = "is not finite from step 0 of row 0 on, in"


@pytest.mark.parametrize(
    ("options", "parameter", "index", "value", "message"),
    [
        (S6, "0.layer.ssm.delta_bias", (0, 3), NAN, f"band 0 (input) {AT_ONCE} its state space model"),
        (S6, "1.layer.ssm.delta_bias", (4, 3), NAN, "band 4 (approximation) is not finite from step 0"),
        (S6, "1.layer.ssm.delta_bias", [1, 3], NAN, f"band 1 (detail 1) {AT_ONCE} its state space "
            "model (2 of 5 bands fail); its delta_bias is not finite, since an earlier update; try a lower lr"),
        ({"ssm": "s4"}, "1.layer.ssm.log_rate", (2, 3), NAN, "band 2 (detail 2) is not finite from step 0"),
        ({"selective_input": "band"}, "1.layer.ssm.delta_bias", (2, 3), NAN, "band 2 (detail 2) is not finite"),
        ({"selective_input": "band", "ssm_input": "input"}, "0.layer.ssm.delta_bias", (2, 3), NAN, "band 2 (detail 2)"),
        ({"decomposition": "conv"}, "0.layer.ssm.delta_bias", (2, 3), NAN, "band 2 (detail 2) is not finite"),
        (S6, "0.layer.decomposition.high", 1, INF, f"band 2 (detail 2) {AT_ONCE} the decomposition"),
        (S6, "0.layer.mixer.projection.bias", 3, INF, f"band 3 (detail 3) {AT_ONCE} its weight"),
    ],
)  # fmt: skip
def test_names_layer_band_and_parameter(
    options: dict[str, Any], parameter: str, index: Any, value: float, message: str
) -> None:
    backbone = _backbone(**options)
    _plant(backbone, parameter, index, value)
    assert _message(backbone, _x()).startswith(f"layer blocks.{parameter[0]}.layer (MultiScaleSSM): {message}")


def test_names_the_step_of_an_overflow() -> None:
    """Weights of one band, all finite, overflow where the input is large: from step 7 of row 1."""
    backbone = _backbone(skip=True)
    layer = _layer(backbone, 0)
    x = _x()
    with torch.no_grad():
        layer.decomposition.low.zero_()
        layer.decomposition.high.zero_()
        layer.decomposition.high[1, 0] = 1e20  # detail 2, from a first level that passes x on
        layer.decomposition.low[0, 0] = 1
        layer.ssm.get_parameter("skip")[2] = 1e17
    x[:, :, :] = 1e-3 * x.sign()
    x[1, 7:] *= 1e6
    message = _message(backbone, x)
    assert "layer blocks.0.layer" in message
    assert "band 2 (detail 2) is not finite from step 7 of row 1 on" in message
    assert "bands fail" not in message
    assert "since an earlier update" not in message


def test_an_input_that_is_not_finite_is_not_blamed_on_the_layer() -> None:
    x = _x()
    x[2, 5, 1] = NAN
    assert _message(_backbone(), x).startswith("the input of layer blocks.0.layer is not finite from step 5 of row 2")


def test_the_part_of_a_block_outside_its_layer_is_named() -> None:
    backbone = _backbone()
    _plant(backbone, "1.glu.bias", 0)
    assert _message(backbone, _x()).startswith("layer blocks.1 (Block): its output is not finite from step 0 of row 0")


def test_layers_without_bands_are_guarded() -> None:
    backbone = Backbone(S4D, d_model=8, n_layers=1)
    _plant(backbone, "0.layer.ssm.log_rate", 0)
    assert _message(backbone, _x()).startswith("layer blocks.0.layer (S4D): its output is not finite from step 0")


def test_padding_may_hold_anything() -> None:
    x, lengths = _x(), torch.tensor([12, 4, 7])
    x[1, 4:] = NAN
    backbone = _backbone()
    with nan_guard(backbone):
        backbone(x, lengths)
    x[1, 3] = NAN
    assert "from step 3 of row 1" in _message(backbone, x, lengths)


def test_a_state_of_one_band_is_found() -> None:
    backbone = _backbone()
    state = backbone.initial_state(3)
    state[1].ssm_state[2, 3] = NAN
    message = _message(backbone, _x(), state=state)
    assert "layer blocks.1.layer" in message
    assert "band 3 (detail 3) is not finite from step 0 of row 2" in message


@pytest.mark.parametrize("ssm", ["s6", "s4", "none"])
def test_a_guarded_run_is_bit_identical(ssm: str) -> None:
    plain = _backbone(ssm=ssm)
    guarded = copy.deepcopy(plain)
    x, lengths = _x(), torch.tensor([12, 4, 7])
    expected = plain(x, lengths)
    expected.sum().backward()
    with nan_guard(guarded):
        actual = guarded(x, lengths)
        actual.sum().backward()
    assert torch.equal(actual, expected)
    for a, b in zip(guarded.parameters(), plain.parameters(), strict=True):
        assert a.grad is b.grad is None or torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


def test_the_guard_ends_with_its_context() -> None:
    backbone = _backbone()
    with nan_guard(backbone):
        pass
    assert backbone(_x() * NAN).isnan().all()
    assert all(not module._forward_hooks for module in backbone.modules())
