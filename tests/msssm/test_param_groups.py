"""Optimizer groups: every parameter once, and each where it belongs."""

from functools import partial
from typing import Any

import pytest
from torch import nn

from msssm import Backbone, MultiScaleSSM, SequenceClassifier, SequenceLayer, param_groups
from msssm.baselines import S4D, CausalAttention, Mamba, MultiresConv

LAYERS: dict[str, Any] = {
    "s6": partial(MultiScaleSSM, levels=1, skip=True),
    "s4-complex": partial(MultiScaleSSM, levels=1, ssm="s4", diagonal="complex", mixer="fixed", skip=True),
    "none": partial(MultiScaleSSM, levels=1, ssm="none"),
    "S4D": S4D,
    "Mamba": Mamba,
    "MultiresConv": partial(MultiresConv, levels=2),
    "attention": CausalAttention,
}


def classifier(layer: Any, **options: Any) -> SequenceClassifier:
    return SequenceClassifier(nn.Embedding(18, 8), Backbone(layer, 8, n_layers=2, **options), 10)


def names(model: nn.Module, **options: Any) -> dict[str, set[str]]:
    """The names of the parameters in each group."""
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    groups = param_groups(model, lr=1e-2, weight_decay=0.1, **options)
    return {group["name"]: {name_of[parameter] for parameter in group["params"]} for group in groups}


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_parameter_is_in_exactly_one_group(layer: str, norm: str) -> None:
    model = classifier(LAYERS[layer], norm=norm, prenorm=True)
    listed = [parameter for group in param_groups(model, 1e-2, 0.1) for parameter in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(model.parameters())


@pytest.mark.parametrize(
    ("layer", "ssm", "decay", "no_decay"),
    [
        (
            LAYERS["s6"](8),
            {"ssm.log_rate", "ssm.delta_bias", "ssm.skip"},
            {"decomposition.low", "decomposition.high", "mixer.projection.weight", "ssm.projection.weight",
             "ssm.delta_weight"},
            {"mixer.projection.bias"},
        ),
        (
            LAYERS["s4-complex"](8),
            {"ssm.log_rate", "ssm.frequency", "ssm.log_delta", "ssm.skip"},
            {"decomposition.low", "decomposition.high", "mixer.weight", "ssm.C"},
            set(),
        ),
        (
            Mamba(8),
            {"ssm.log_rate", "ssm.delta_bias", "ssm.skip"},
            {"input.weight", "taps", "ssm.projection.weight", "ssm.delta_weight", "output.weight"},
            {"bias"},
        ),
        (CausalAttention(8), set(), {"input.weight", "output.weight"}, {"input.bias", "output.bias"}),
    ],
)  # fmt: skip
def test_each_parameter_of_a_layer_is_where_it_belongs(
    layer: SequenceLayer, ssm: set[str], decay: set[str], no_decay: set[str]
) -> None:
    expected = {"ssm": ssm, "decay": decay, "no_decay": no_decay}
    assert names(layer) == {name: members for name, members in expected.items() if members}


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_norms_and_biases_do_not_decay(norm: str) -> None:
    groups = names(classifier(LAYERS["none"], norm=norm))
    for block in ("backbone.blocks.0", "backbone.blocks.1"):
        assert {f"{block}.norm.inner.weight", f"{block}.norm.inner.bias"} <= groups["no_decay"]
        assert f"{block}.glu.bias" in groups["no_decay"]
        assert f"{block}.glu.weight" in groups["decay"]
    assert {"encoder.weight", "head.weight"} <= groups["decay"]
    assert "head.bias" in groups["no_decay"]


def test_only_the_weights_decay_and_only_the_ssm_has_its_own_rate() -> None:
    groups = {group["name"]: group for group in param_groups(classifier(LAYERS["s6"]), 1e-2, 0.1, ssm_lr=1e-3)}
    settings = {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()}
    assert settings == {"decay": (1e-2, 0.1), "no_decay": (1e-2, 0.0), "ssm": (1e-3, 0.0)}


def test_empty_groups_are_left_out_and_the_ssm_learns_as_the_rest_by_default() -> None:
    assert names(nn.Linear(2, 2, bias=False)) == {"decay": {"weight"}}
    assert {group["lr"] for group in param_groups(classifier(LAYERS["s6"]), 1e-2, 0.1)} == {1e-2}
