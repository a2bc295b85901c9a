"""The readable forward pass is the layer's, and stands alone."""

import ast
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from msssm import MultiScaleSSM, minimal
from msssm.minimal import ms_ssm
from tests.support.tolerances import GRADIENT, OUTPUT, assert_near

SOURCE = Path(minimal.__file__).read_text()
MIXERS = ("input", "fixed", "softmax", "sum")
SSMS: dict[str, dict[str, Any]] = {
    "s6": {},
    "s6-rank-2": {"dt_rank": 2},
    "s4": {},
    "s4-complex": {"diagonal": "complex"},
}


def layer_and_input(ssm: str, length: int = 19, **options: Any) -> tuple[MultiScaleSSM, Tensor]:
    """In float64, every parameter moved off its start, so that no two bands, channels or mixers are alike."""
    torch.manual_seed(0)
    layer = MultiScaleSSM(4, state_size=6, ssm=ssm, dt_min=0.05, dt_max=0.5, backend="reference", **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer, torch.randn(2, length, 4, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("ssm", "mixer", "discretization"), [*itertools.product(SSMS, MIXERS, ("zoh", "euler"))])
def test_output_and_gradients_are_those_of_the_layer(ssm: str, mixer: str, discretization: str) -> None:
    kind = ssm[:2]
    layer, x = layer_and_input(kind, mixer=mixer, discretization=discretization, **SSMS[ssm])
    weights = dict(layer.named_parameters())
    expected, actual = layer(x), ms_ssm(x, weights, kind, mixer, discretization)
    assert_near(actual, expected, OUTPUT[torch.float64])

    cotangent = torch.randn_like(expected)
    leaves = (x, *weights.values())
    actual_gradients, gradients = (torch.autograd.grad(y, leaves, cotangent) for y in (actual, expected))
    for actual_gradient, gradient in zip(actual_gradients, gradients, strict=True):
        assert gradient.any()
        assert_near(actual_gradient, gradient, GRADIENT[torch.float64])


@pytest.mark.parametrize("ssm", ["s6", "s4"])
@pytest.mark.parametrize(("levels", "kernel_size", "length"), [(0, 2, 5), (1, 1, 5), (5, 3, 40), (4, 4, 1)])
def test_any_levels_taps_and_lengths(ssm: str, levels: int, kernel_size: int, length: int) -> None:
    """No cascade, one tap, filters longer than the sequence."""
    layer, x = layer_and_input(ssm, length, levels=levels, kernel_size=kernel_size)
    assert_near(ms_ssm(x, layer.state_dict(), ssm), layer(x), OUTPUT[torch.float64])


@pytest.mark.parametrize("options", [{"ssm": "S6"}, {"mixer": "sofmax"}, {"discretization": "bilinear"}])
def test_a_misspelt_option_computes_nothing(options: dict[str, str]) -> None:
    layer, x = layer_and_input("s6")
    with pytest.raises(KeyError, match=next(iter(options.values()))):
        ms_ssm(x, layer.state_dict(), **options)


def test_it_imports_torch_alone_and_is_short() -> None:
    nodes = list(ast.walk(ast.parse(SOURCE)))
    assert not any(node.level for node in nodes if isinstance(node, ast.ImportFrom))
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).split(".")[0] for name in names} == {"torch"}
    assert len(SOURCE.splitlines()) <= 90
