"""What every sequence layer promises: chunks, steps, causality, padding, shifts, gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from msssm import Backbone, MultiScaleSSM, SequenceClassifier
from msssm.baselines import S4D, CausalAttention
from msssm.block import Block
from tests.support.layers import BASELINES, LAYERS, SHIFTING, SMALL, STACKS, WHOLE, D, build, signal, tensors
from tests.support.tolerances import GRADIENT, OUTPUT, assert_near


@pytest.mark.parametrize("length", [1, 2, 17, 130])
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_chunks_and_steps_equal_the_whole(name: str, length: int) -> None:
    layer, x = build(LAYERS[name]), signal(length)
    whole, last = layer(x, return_state=True)
    assert_near(layer(x), whole, OUTPUT[torch.float64])

    state, parts = layer.initial_state(2), []
    for chunk in x.split([1, length // 3, length - 1 - length // 3], 1):
        if chunk.shape[1]:
            y, state = layer(chunk, state=state, return_state=True)
            parts.append(y)
    assert_near(torch.cat(parts, 1), whole, OUTPUT[torch.float64])
    for actual, expected in zip(tensors(state), tensors(last), strict=True):
        assert actual.dtype == expected.dtype
        assert_near(actual, expected, OUTPUT[torch.float64])

    state, steps = layer.initial_state(2), []
    for x_t in x.unbind(1):
        y_t, state = layer.step(x_t, state)
        steps.append(y_t)
    assert_near(torch.stack(steps, 1), whole, OUTPUT[torch.float64])


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_no_output_sees_the_future(name: str) -> None:
    layer, x = build(LAYERS[name]), signal(33)
    y = layer(x)
    for cut in (1, 16, 32):
        changed = layer(torch.cat((x[:, :cut], signal(33 - cut, seed=2)), 1))
        assert_near(changed[:, :cut], y[:, :cut], OUTPUT[torch.float64])
        assert (changed[:, cut] - y[:, cut]).abs().max() > 1e-3 * y.abs().max()


@pytest.mark.parametrize("name", SHIFTING)
@torch.no_grad()
def test_a_shifted_input_gives_a_shifted_output(name: str) -> None:
    """Silence in front changes nothing but the time: no padding artefact, no stride, no clock."""
    layer, x = build(SHIFTING[name]), signal(29)
    y = layer(x)
    for shift in (1, 2, 5, 8):
        late = layer(torch.nn.functional.pad(x, (0, 0, shift, 0)))
        assert_near(late[:, shift:], y, OUTPUT[torch.float64])
        assert late[:, :shift].abs().max() <= OUTPUT[torch.float64] * y.abs().max()


@torch.no_grad()
def test_mamba_shifts_while_its_convolution_has_no_bias() -> None:
    layer, x = build(BASELINES["Mamba"]), signal(29)
    layer.bias.zero_()
    late = layer(torch.nn.functional.pad(x, (0, 0, 3, 0)))
    assert_near(late[:, 3:], layer(x), OUTPUT[torch.float64])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -1e30])
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_padding_changes_neither_the_rows_nor_the_state(name: str, poison: float) -> None:
    """Ragged rows, continued by ragged rows, equal each row alone and in one piece."""
    layer = build(LAYERS[name])
    x, following = signal(17, batch=4), signal(6, batch=4, seed=3)
    lengths, more = [17, 5, 0, 12], [6, 0, 4, 3]
    rows = [torch.cat((x[b, :n], following[b, :m])) for b, (n, m) in enumerate(zip(lengths, more, strict=True))]
    for b, (n, m) in enumerate(zip(lengths, more, strict=True)):
        x[b, n:], following[b, m:] = poison, poison
    first, state = layer(x, torch.tensor(lengths), return_state=True)
    second, _ = layer(following, torch.tensor(more), state, return_state=True)
    for b, (n, m) in enumerate(zip(lengths, more, strict=True)):
        alone = layer(rows[b].unsqueeze(0)).squeeze(0)
        assert_near(torch.cat((first[b, :n], second[b, :m])), alone, OUTPUT[torch.float64])
    assert all(leaf.isfinite().all() for leaf in tensors(state) if leaf.dtype != torch.bool)


@pytest.mark.parametrize("name", [name for name in STACKS if name.startswith("backbone")])
@pytest.mark.parametrize("poison", [float("nan"), 1e3])
def test_what_stands_in_the_padding_does_not_reach_training(name: str, poison: float) -> None:
    """Output, running statistics and every gradient, batch norm in training mode included."""
    lengths, weights = [9, 4, 6], signal(9, batch=3, seed=5)

    def train(padding: float, extra: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        layer = build(STACKS[name]).train()
        x = torch.nn.functional.pad(signal(9, batch=3), (0, 0, 0, extra))
        for b, n in enumerate(lengths):
            x[b, n:] = padding
        y = layer(x, torch.tensor(lengths))
        true = [y[b, :n] for b, n in enumerate(lengths)]
        loss = torch.cat([(part * weights[b, : len(part)]).flatten() for b, part in enumerate(true)]).sum()
        return true, list(torch.autograd.grad(loss, list(layer.parameters()))), list(layer.buffers())

    silent = train(0.0, extra=0)
    for extra in (0, 5):
        for actual, expected in zip(train(poison, extra), silent, strict=True):
            for one, other in zip(actual, expected, strict=True):
                assert_near(one, other, GRADIENT[torch.float64])


def test_padding_reaches_no_gradient_of_a_classifier() -> None:
    """Nor of its encoder, whose gradient is a product with the input."""
    torch.manual_seed(0)
    model = SequenceClassifier(torch.nn.Linear(2, D), build(STACKS["backbone-s4"]), 3).double()
    lengths, x = torch.tensor([6, 4]), torch.randn(2, 6, 2, dtype=torch.float64)
    gradients = []
    for padding in (0.0, float("nan")):
        x[1, 4:] = padding
        gradients.append(torch.autograd.grad(model(x, lengths).sum(), list(model.parameters())))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_padding_does_not_change_the_logits() -> None:
    torch.manual_seed(0)
    backbone = build(STACKS["backbone-batch-post"])
    model = SequenceClassifier(torch.nn.Embedding(10, D), backbone, 3).double().eval()
    tokens, lengths = torch.randint(10, (3, 12)), torch.tensor([12, 7, 1])
    logits = model(tokens, lengths)
    for row, length in enumerate(lengths):
        assert_near(logits[row], model(tokens[row : row + 1, :length])[0], OUTPUT[torch.float64])


@pytest.mark.parametrize("name", SMALL)
def test_gradients_equal_finite_differences(name: str) -> None:
    """Of the input and of every parameter, with a padded row."""
    layer = build(SMALL[name], width=2).train()
    names = [parameter for parameter, _ in layer.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    lengths = torch.tensor([4, 2])

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        y = functional_call(layer, dict(zip(names, parameters, strict=True)), (x, lengths))
        return torch.cat((y[0, :4], y[1, :2]))

    assert torch.autograd.gradcheck(run, (signal(4, width=2).requires_grad_(), *values))


@pytest.mark.parametrize("name", LAYERS | WHOLE)
@torch.no_grad()
def test_a_state_dict_restores_the_layer(name: str) -> None:
    make = (LAYERS | WHOLE)[name]
    layer, x = build(make), signal(9)
    torch.manual_seed(7)
    other = make(D).double().eval()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_the_initial_state_of_a_float32_layer_is_float32() -> None:
    for make in LAYERS.values():
        dtypes = {leaf.dtype for leaf in tensors(make(D).initial_state(1))}
        assert dtypes <= {torch.float32, torch.complex64, torch.bool}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiScaleSSM(0), "d_model must be at least 1, got 0"),
        (lambda: MultiScaleSSM(4, levels=-1), "levels must be at least 0, got -1"),
        (lambda: MultiScaleSSM(4, state_size=0), "state_size must be at least 1, got 0"),
        (lambda: MultiScaleSSM(4, ssm="s5"), "'s6', 's4' or 'none', got 's5'"),  # type: ignore[arg-type]
        (lambda: MultiScaleSSM(4, mixer="max"), "'softmax' or 'sum', got 'max'"),  # type: ignore[arg-type]
        (lambda: MultiScaleSSM(4, decomposition="fft"), "'wavelet' or 'conv', got 'fft'"),  # type: ignore[arg-type]
        (lambda: MultiScaleSSM(4, ssm="s4", selective_input="band"), "got 'band' with ssm='s4'"),
        (lambda: MultiScaleSSM(4, ssm="none", ssm_input="input"), "got 'input' with ssm='none'"),
        (lambda: MultiScaleSSM(4, ssm="s4", selection_norm=True), "selection_norm needs ssm='s6', got ssm='s4'"),
        (lambda: MultiScaleSSM(4, mixer_heads=3), "mixer_heads must divide d_model = 4, got 3"),
        (lambda: MultiScaleSSM(4, diagonal="complex"), "needs ssm='s4', got ssm='s6'"),
        (lambda: MultiScaleSSM(4, ssm="s4", diagonal="complex", state_size=3), "must be even, got 3"),
        (lambda: CausalAttention(6, heads=2), "must divide d_model = 6, got heads = 2"),
        (lambda: Block(S4D(4), dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: Block(S4D(4), drop_path=-0.1), r"drop_path must be in \[0, 1\), got -0.1"),
        (lambda: Backbone(S4D, 4, n_layers=1, drop_path=1.0), r"drop_path must be in \[0, 1\), got 1.0"),
        (lambda: Backbone(S4D, 4, n_layers=0), "n_layers must be at least 1, got 0"),
    ],
)
def test_a_bad_option_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("option", [{"discretization": "bilinear"}, {"backend": "cuda"}, {"initialization": "hippo"}])
def test_a_bad_scan_option_is_named_by_the_first_call_at_the_latest(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        MultiScaleSSM(4, **option)(torch.zeros(1, 2, 4))
