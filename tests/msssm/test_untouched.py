"""Steps, which have fast paths of their own, equal the whole sequence whatever was done to the modules inside."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.parametrize import register_parametrization

from msssm import Backbone, MultiScaleSSM, SequenceClassifier
from msssm.baselines import CausalAttention, Mamba
from msssm.block import Block
from msssm.streaming import StreamingClassifier
from tests.support.tolerances import QUANTISED, STEP, assert_near

D = 8


class LoRA(nn.Module):
    """A low-rank addition to a frozen linear layer, which it wraps and whose weight it shows."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.A, self.B = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.B(self.A(x))
        return y


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Marked(Tensor):
    """A tensor subclass, as quantisation makes them: every linear map with it is doubled."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(function, types, args, kwargs)
        return 2 * result.as_subclass(Tensor) if function is nn.functional.linear else result


def replaced(change: Callable[[nn.Linear], nn.Module]) -> Callable[[nn.Module], None]:
    """Every linear layer by another module."""

    def apply(model: nn.Module) -> None:
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear:
                    setattr(module, name, change(child))

    return apply


def to_each(change: Callable[[nn.Linear], Any]) -> Callable[[nn.Module], None]:
    def apply(model: nn.Module) -> None:
        for module in list(model.modules()):
            if type(module) is nn.Linear:
                change(module)

    return apply


def doubled(base: nn.Linear) -> nn.Linear:
    module = Doubled(base.in_features, base.out_features, base.bias is not None)
    module.load_state_dict(base.state_dict())
    return module


def marked(module: nn.Linear) -> None:
    module.weight = nn.Parameter(module.weight.detach().as_subclass(Marked))


def own_forward(module: nn.Linear) -> None:
    original = module.forward
    module.forward = lambda x: 2 * original(x)  # type: ignore[method-assign]


def halve(module: nn.Module, args: Any, result: Any) -> Any:
    """A forward hook."""
    return (result[0] / 2, *result[1:]) if isinstance(result, tuple) else result / 2


def hooked(*kinds: type[nn.Module]) -> Callable[[nn.Module], None]:
    """A forward hook on every module of some classes, which halves the first result."""

    def apply(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, kinds):
                module.register_forward_hook(halve)

    return apply


def parametrized_taps(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, MultiScaleSSM):
            register_parametrization(module.decomposition, "low", Twice())
            register_parametrization(module.ssm, "log_rate", Twice())


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "nothing": lambda model: None,
    "LoRA": replaced(LoRA),
    "subclass": replaced(doubled),
    "tensor subclass": to_each(marked),
    "forward hook": hooked(nn.Linear),
    "forward pre-hook": to_each(lambda m: m.register_forward_pre_hook(lambda module, args: (args[0] / 2,))),
    "own forward": to_each(own_forward),
    "weight norm": to_each(lambda m: parametrizations.weight_norm(m).parametrizations.weight.original0.mul_(2)),
    "spectral norm": to_each(parametrizations.spectral_norm),
    "pruned": to_each(lambda m: prune.l1_unstructured(m, "weight", amount=0.5)),
    "quantised": replaced(lambda m: torch.ao.quantization.quantize_dynamic(nn.Sequential(m), {nn.Linear})[0]),
    "parametrised taps and rates": parametrized_taps,
    "hook on norms": hooked(nn.LayerNorm),
    "hook on layers": hooked(MultiScaleSSM, Mamba, CausalAttention),
    "hook on blocks": hooked(Block, Backbone),
}


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "s6": lambda: MultiScaleSSM(D, 1, 2, 3, mixer="softmax"),
    "s4": lambda: MultiScaleSSM(D, 1, 2, 4, ssm="s4", diagonal="complex"),
    "s6-gates": lambda: MultiScaleSSM(D, 1, 2, 3, selective_input="band"),
    "Mamba": lambda: Mamba(D, 3),
    "CausalAttention": lambda: CausalAttention(D, 2),
    "Backbone": lambda: Backbone(lambda d: MultiScaleSSM(d, 1, 2, 3), D, 2, prenorm=True),
}


def changed(model: nn.Module, change: str) -> nn.Module:
    CHANGES[change](model)
    return model.eval()


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_steps_of_a_changed_layer_equal_the_whole(name: str, change: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    x = torch.randn(2, 5, D)
    before = layer.eval()(x)
    layer = changed(layer, change)
    whole, state = layer(x), layer.initial_state(2)
    linear_only = change in ("hook on norms", "hook on layers", "hook on blocks", "parametrised taps and rates")
    if change != "nothing" and not (linear_only and torch.equal(whole, before)):
        assert (whole - before).abs().max() > 1e-4  # the change is one that a bypass would miss
    for t in range(5):
        y, state = layer.step(x[:, t], state)
        assert_near(y, whole[:, t], QUANTISED if change == "quantised" else STEP[torch.float32])


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_stream_of_a_changed_classifier_equals_the_whole(change: str, norm: Any) -> None:
    torch.manual_seed(0)
    backbone = Backbone(lambda d: MultiScaleSSM(d, 1, 2, 3), D, 2, norm=norm)
    model = changed(SequenceClassifier(nn.Linear(D, D), backbone, 3), change)
    assert isinstance(model, SequenceClassifier)
    stream, x = StreamingClassifier(model), torch.randn(2, 5, D)
    whole, state = model(x), stream.initial_state(2)
    for t in range(5):
        logits, state = stream.step(x[:, t], state)
    assert_near(logits, whole, QUANTISED if change == "quantised" else STEP[torch.float32])


@torch.no_grad()
def test_global_hooks_see_every_module() -> None:
    layer, seen = MultiScaleSSM(D, 1, 2, 3), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, result: seen.append(type(module)))
    try:
        layer.step(torch.randn(1, D), layer.initial_state(1))
    finally:
        handle.remove()
    assert nn.Linear in seen


@torch.no_grad()
def test_a_hook_on_the_classifier_sees_its_steps() -> None:
    backbone = Backbone(lambda d: MultiScaleSSM(d, 1, 2, 3), D, 1)
    model = SequenceClassifier(nn.Linear(D, D), backbone, 3).eval()
    model.register_forward_hook(halve)
    x = torch.randn(2, 3, D)
    for own, stream in ((model.initial_state(2), model), (None, StreamingClassifier(model))):
        state = stream.initial_state(2) if own is None else own
        for t in range(3):
            logits, state = stream.step(x[:, t], state)
        assert_near(logits, model(x), STEP[torch.float32])
