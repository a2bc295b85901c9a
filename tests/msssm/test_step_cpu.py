"""The native step of a multi-scale S6 layer equals the whole sequence, and allocates its results alone."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from msssm import MultiScaleSSM
from msssm.layer import SequenceLayer
from msssm.scan.cpu.library import library
from tests.support.tolerances import GRADIENT, STEP, assert_near

pytestmark = pytest.mark.skipif(library() is None, reason="the native kernels are not built")

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "euler": {"discretization": "euler", "skip": True},
    "fixed": {"mixer": "fixed", "mixer_heads": 4, "state_size": 1},
    "softmax": {"mixer": "softmax", "mixer_heads": 2, "dt_rank": 3},
    "normed": {"selection_norm": True, "dt_rank": 3},
    "sum": {"mixer": "sum", "kernel_size": 2, "state_size": 25},
    "per channel": {"mixer_heads": 20, "initialization": "mamba"},
    "shared": {"shared_filters": True, "filter_init": "haar"},
    "no levels": {"levels": 0},
    "one tap": {"kernel_size": 1, "levels": 2},
}


def no_fallback(self: SequenceLayer, x: Tensor, state: Any) -> Any:
    raise AssertionError("the step went through the whole-sequence path")


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_steps_equal_the_whole_sequence(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """From silence and from the state of a first chunk; the last state is that of the whole run too."""
    torch.manual_seed(0)
    layer = MultiScaleSSM(20, **options)
    truth = MultiScaleSSM(20, **options).double()
    truth.load_state_dict(layer.state_dict())
    x = torch.randn(3, 40, 20)
    expected, last = truth(x.double(), return_state=True)
    first, state = layer(x[:, :7], return_state=True)
    monkeypatch.setattr(SequenceLayer, "step", no_fallback)
    for begin, start in ((0, layer.initial_state(3)), (7, state)):
        outputs, now = [first[:, t] for t in range(begin)], start
        for t in range(begin, 40):
            y, now = layer.step(x[:, t], now)
            outputs.append(y)
        assert_near(torch.stack(outputs, 1), expected, STEP[torch.float32])
        assert_near(now.ssm_state, last.ssm_state, STEP[torch.float32])
        for history, right in zip(now.conv_state, last.conv_state, strict=True):
            assert_near(history, right, STEP[torch.float32])


class Allocations(TorchDispatchMode):
    """Names of the operators that run, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_step_allocates_its_results_alone() -> None:
    """y, the histories and the states: three tensors, and no other operator runs."""
    layer = MultiScaleSSM(16)
    _, state = layer.step(torch.randn(2, 16), layer.initial_state(2))
    x = torch.randn(2, 16)
    with Allocations() as seen:
        layer.step(x, state)
    poison = ["fill_"] * 3  # of tests/support/poison.py
    assert sorted(name.split(".")[0] for name in seen.names) == ["empty_like", *poison, "new_empty", "new_empty"]


def test_a_step_with_gradients_has_those_of_a_sequence_of_one() -> None:
    torch.manual_seed(0)
    layer, x = MultiScaleSSM(6), torch.randn(2, 6)
    y, _ = layer.step(x, layer.initial_state(2))
    parameters = list(layer.parameters())
    found = torch.autograd.grad(y.square().sum(), parameters)
    for grad, expected in zip(
        found, torch.autograd.grad(layer(x.unsqueeze(1)).square().sum(), parameters), strict=True
    ):
        assert_near(grad, expected, GRADIENT[torch.float32])


@torch.no_grad()
def test_a_wrong_width_is_named() -> None:
    layer = MultiScaleSSM(6)
    with pytest.raises(ValueError, match=r"shape \(B, L, 6\), got torch\.float32 of shape \(2, 1, 5\)"):
        layer.step(torch.randn(2, 5), layer.initial_state(2))
