"""What a block keeps for its backward, and that a second computation changes nothing but that."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msssm import Backbone, Bidirectional, MultiScaleSSM, SequenceLayer
from msssm.baselines import S4D, Mamba, MultiresConv
from msssm.norm import Norm
from tests.support.tolerances import GRADIENT, STEP, assert_near

B, L, D = 2, 160, 16
LAYERS: dict[str, Callable[[int], SequenceLayer]] = {
    "s6": partial(MultiScaleSSM, levels=3, state_size=4),
    "s6, gates of the band": partial(MultiScaleSSM, levels=2, state_size=4, selective_input="band", ssm_input="input"),
    "s4": partial(MultiScaleSSM, levels=3, state_size=4, ssm="s4"),
    "s4, complex": partial(MultiScaleSSM, levels=3, state_size=4, ssm="s4", diagonal="complex"),
    "no ssm": partial(MultiScaleSSM, levels=3, ssm="none"),
    "plain convolutions": partial(MultiScaleSSM, levels=3, state_size=4, decomposition="conv"),
    "plain torch": partial(MultiScaleSSM, levels=3, state_size=4, backend="torch"),
    "both directions": lambda d: Bidirectional(d, partial(MultiScaleSSM, levels=2, state_size=4)),
    "S4D": S4D,
    "Mamba": Mamba,
    "MultiresNet": MultiresConv,
}


def backbone(layer: str = "s6", recompute: bool = True, blocks: int = 2, **options: Any) -> Backbone:
    torch.manual_seed(0)
    return Backbone(LAYERS[layer], D, blocks, recompute=recompute, **options)


def signal(requires_grad: bool = True) -> Tensor:
    return torch.randn(B, L, D, generator=torch.Generator().manual_seed(1)).requires_grad_(requires_grad)


def loss(y: Tensor) -> Tensor:
    """A fixed combination: the squares of normalised outputs would have no gradient."""
    return (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(3))).sum()


def gradients(model: nn.Module, run: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Of the input and of all parameters that have one, dropout drawn from the same seed."""
    x = signal()
    torch.manual_seed(2)
    leaves = [x, *(p for p in model.parameters() if p.requires_grad and p.numel())]
    return [g for g in torch.autograd.grad(loss(run(x)), leaves, allow_unused=True) if g is not None]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected) > 2
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def kept(model: nn.Module, x: Tensor) -> float:
    """Memory that a forward leaves allocated, times its input."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        y = model(x)
    assert y.grad_fn is not None
    return sum(event.self_cpu_memory_usage for event in profile.key_averages()) / (x.numel() * x.element_size())


@pytest.mark.parametrize("prenorm", [True, False])
@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("ssm", ["s6", "s4"])
def test_what_a_block_keeps_hardly_grows_with_the_levels(ssm: Any, norm: Norm, prenorm: bool) -> None:
    """A block with GLU, dropout and norm: at most 4.5 times its input, and at most a tenth more at S = 5 than at 0."""
    x = torch.randn(2, 1024, 64)

    def of(levels: int, recompute: bool = True) -> float:
        layer = partial(MultiScaleSSM, levels=levels, ssm=ssm)
        blocks = [Backbone(layer, 64, n, norm, prenorm, dropout=0.1, recompute=recompute) for n in (1, 3)]
        one, three = (kept(model, x) for model in blocks)
        return (three - one) / 2

    assert of(6) < 4.5
    assert of(5) < 1.1 * of(0)
    assert of(5, recompute=False) > 10


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_and_statistics_are_the_same_to_the_bit(layer: str, norm: Norm) -> None:
    """Whole rows and padded ones, with dropout; batch norm counts each batch once."""
    models = [backbone(layer, recompute, norm=norm, dropout=0.3) for recompute in (True, False)]
    for lengths in (None, torch.tensor([L, 7])):
        assert_same(*(gradients(model, partial(model, lengths=lengths)) for model in models))
    for one, other in zip(models[0].buffers(), models[1].buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("prenorm", [True, False])
def test_stochastic_depth_drops_the_same_rows_again(prenorm: bool) -> None:
    """Bit-equal with and without recomputation, and the gradients of the rows that the output shows as kept."""
    models = [backbone(recompute=recompute, drop_path=0.5, prenorm=prenorm, blocks=3) for recompute in (True, False)]
    x = torch.randn(12, 20, D, generator=torch.Generator().manual_seed(1))
    for lengths in (None, torch.tensor([20, 7] * 6)):
        found = []
        for model in models:
            torch.manual_seed(4)
            y = model(x, lengths)
            found.append([y, *torch.autograd.grad(loss(y), [p for p in model.parameters() if p.numel()])])
        assert_same(*found)
    block = backbone(blocks=1, prenorm=True).blocks[0]
    block.drop_path = 0.5
    y = block(x)
    kept = (y != x).flatten(1).any(1)
    assert 0 < kept.sum() < 12
    parameters = [p for p in block.parameters() if p.numel()]
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    dropped = torch.autograd.grad((y * weight).sum(), parameters)
    of_kept = torch.autograd.grad((2 * block.eval()(x) * weight)[kept].sum(), parameters)
    for one, other in zip(dropped, of_kept, strict=True):
        assert_near(one, other, GRADIENT[torch.float32])


@pytest.mark.parametrize("layer", ["s6", "s4", "plain torch", "Mamba"])
def test_chunks_hand_gradients_on_through_the_state(layer: str) -> None:
    def run(model: Backbone, x: Tensor) -> Tensor:
        first, state = model(x[:, :60], return_state=True)
        return torch.cat((first, model(x[:, 60:], state=state)), 1)

    assert_same(*(gradients(m, partial(run, m)) for m in (backbone(layer, True), backbone(layer, False))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_repeated(dtype: torch.dtype) -> None:
    def run(model: Backbone, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            return model(x).float()

    assert_same(*(gradients(m, partial(run, m)) for m in (backbone(recompute=True), backbone(recompute=False))))


def test_a_graph_can_be_walked_again_and_differentiated() -> None:
    results = []
    for recompute in (True, False):
        model, x = backbone(recompute=recompute).eval(), signal()
        y = model(x)
        first, second = (torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)[0] for t in (3, L - 1))
        [slope] = torch.autograd.grad(loss(y), x, create_graph=True)
        curvature = torch.autograd.grad(slope.square().sum(), list(model.parameters()), allow_unused=True)
        results.append([first, second, slope, *(g for g in curvature if g is not None)])
    assert_same(*results)


def test_frozen_weights_and_accumulated_gradients() -> None:
    grads = []
    for recompute in (True, False):
        model = backbone(recompute=recompute, dropout=0.2)
        frozen = model.blocks[0].layer
        frozen.requires_grad_(False)
        torch.manual_seed(0)
        for _ in range(3):
            loss(model(signal(requires_grad=False))).backward()
        assert all(p.grad is None for p in frozen.parameters())
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert_same(*grads)


@pytest.mark.parametrize("place", ["layer", "layer.ssm", "glu"])
def test_a_hook_inside_a_block_is_called_once(place: str) -> None:
    """Such a block keeps everything instead."""
    model, calls = backbone(blocks=1), []
    hook = model.blocks[0].get_submodule(place).register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    hooked = gradients(model, model)
    assert calls == [True]
    hook.remove()
    plain = gradients(model, model)
    assert len(calls) == 1
    if place == "layer.ssm":  # decomposition and scan were two operators, which sum over other pieces of time
        for one, other in zip(plain, hooked, strict=True):
            assert_near(one, other, GRADIENT[torch.float32])
    else:
        assert_same(plain, hooked)


def test_what_counts_its_calls_is_called_once() -> None:
    """Spectral norm iterates at each call in training."""
    states = []
    for recompute in (True, False):
        model = backbone(blocks=1, recompute=recompute)
        nn.utils.parametrizations.spectral_norm(model.blocks[0].glu)
        states.append([*gradients(model, model), *model.buffers()])
    assert_same(*states)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [("s6", {"selective_forward": 1}), ("s4", {"lti_forward": 1, "decomposition_forward": 3})],
)
def test_a_scan_runs_once(layer: str, expected: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward and two backwards through the same graph; a decomposition of its own is computed again in each."""
    from msssm.scan.decomposition import cpu as decomposition
    from msssm.scan.lti import cpu as lti
    from msssm.scan.selective import cpu as selective

    class Counting:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def __getattr__(self, name: str) -> Any:
            self.calls.append(name)
            return getattr(native, name)

    native, counting = selective.native(), Counting()
    for module in (decomposition, selective, lti):
        monkeypatch.setattr(module, "native", lambda: counting)
    model, x = backbone(layer, blocks=1), signal()
    total = loss(model(x))
    for _ in range(2):
        torch.autograd.grad(total, x, retain_graph=True)
    names = "selective_forward", "lti_forward", "decomposition_forward"
    counts = {name: count for name in names if (count := counting.calls.count(f"msssm_{name}"))}
    assert counts == expected


def test_nothing_is_noted_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    import msssm.block

    def refuse(*args: Any) -> None:
        raise AssertionError("recomputed")

    monkeypatch.setattr(msssm.block, "recomputed", refuse)
    model, x = backbone(), signal(requires_grad=False)
    with torch.no_grad():
        y = model(x)
        state = model.initial_state(B)
        for t in range(3):
            y_t, state = model.step(x[:, t], state)
    with torch.inference_mode():
        model(x)
    assert_near(y_t, y[:, 2], STEP[torch.float32])
    with pytest.raises(AssertionError, match="recomputed"):
        model(x)


def test_transforms_of_functions_see_the_plain_block() -> None:
    model = backbone().eval().double()
    parameters = dict(model.named_parameters())

    def of_row(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return loss(torch.func.functional_call(model, parameters, (row.unsqueeze(0),)))

    rows = signal(requires_grad=False).double()
    per_sample = torch.func.vmap(torch.func.grad(of_row), in_dims=(None, 0), randomness="same")(parameters, rows)
    total = sum(of_row(parameters, row) for row in rows)
    expected = torch.autograd.grad(total, list(parameters.values()))
    for one, other in zip(per_sample.values(), expected, strict=True):
        assert_near(one.sum(0), other, GRADIENT[torch.float64])


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_compiled_blocks_keep_as_little(norm: Norm) -> None:
    model, compiled = backbone(norm=norm), torch.compile(backbone(norm=norm), backend="aot_eager")
    for one, other in zip(gradients(compiled, compiled), gradients(model, model), strict=True):
        assert_near(one, other, GRADIENT[torch.float32])
    assert kept(compiled, signal()) < 1.1 * kept(model, signal())


@pytest.mark.parametrize(
    "layer",
    [
        "s6",
        "both directions",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("s4, complex", "no ssm", "plain torch")),
    ],
)
def test_a_backbone_compiles_as_one_graph(layer: str) -> None:
    """Forward and backward without a graph break, whole rows and padded ones."""
    model = backbone(layer, blocks=1)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for lengths in (None, torch.tensor([9, 5])):
        # A short row: plain torch is unrolled.
        runs = (lambda x, f=f: f(x[:, :9], lengths) for f in (compiled, model))  # noqa: B023
        for one, other in zip(*(gradients(model, run) for run in runs), strict=True):
            assert_near(one, other, GRADIENT[torch.float32])
