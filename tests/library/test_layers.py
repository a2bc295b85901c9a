"""What every sequence layer promises: chunks, steps, causality, padding, shifts, stability, gradients."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import msssm.native_layer
import msssm.ssm
from msssm import Backbone, Bidirectional, MultiScaleSSM, SequenceClassifier, SequenceLayer
from msssm.baselines import S4D, CausalAttention, Mamba, MultiresConv
from msssm.block import Block
from msssm.scan import selective_scan
from msssm.scan.cpu.selective import Operands
from msssm.scan.step_size import full_rank, step_size
from tests.support.tolerances import GRADIENT, OUTPUT, allowed, assert_near

D = 4
Make = Callable[[int], SequenceLayer]
multi: Callable[..., Make] = partial(partial, MultiScaleSSM, levels=2, kernel_size=3, state_size=4)

MULTI_SCALE: dict[str, Make] = {
    f"{ssm}-{mixer}-{discretization}": multi(ssm=ssm, mixer=mixer, discretization=discretization)
    for ssm, mixer, discretization in itertools.product(
        ("s6", "s4"), ("input", "fixed", "softmax", "sum"), ("zoh", "euler")
    )
}
MULTI_SCALE |= {f"none-{mixer}": multi(ssm="none", mixer=mixer) for mixer in ("input", "fixed", "softmax", "sum")}
MULTI_SCALE |= {
    "s4-complex-zoh": multi(ssm="s4", diagonal="complex"),
    "s4-complex-euler": multi(ssm="s4", diagonal="complex", discretization="euler"),
    "s6-heads-2": multi(mixer_heads=2),
    "s6-heads-D-softmax": lambda d: multi(mixer="softmax", mixer_heads=d)(d),
    "s4-heads-2": multi(ssm="s4", mixer_heads=2),
    "s6-skip": multi(skip=True),
    "s6-normed": multi(selection_norm=True),
    "s4-skip": multi(ssm="s4", skip=True),
    "s6-shared-filters": multi(shared_filters=True),
    "s6-conv": multi(decomposition="conv"),
    "s4-conv": multi(ssm="s4", decomposition="conv"),
    "s6-gates-of-band": multi(selective_input="band"),
    "s6-drive-of-input": multi(selective_input="band", ssm_input="input", skip=True),
    "s4-drive-of-input": multi(ssm="s4", ssm_input="input"),
    "s6-mamba-init-rank-2": multi(initialization="mamba", dt_rank=2),
    "s6-reference": multi(backend="reference"),
    "s6-no-levels": partial(MultiScaleSSM, levels=0, state_size=4),
    "s4-one-tap": partial(MultiScaleSSM, levels=2, kernel_size=1, state_size=4, ssm="s4"),
}
BASELINES: dict[str, Make] = {
    "S4D": partial(S4D, state_size=4),
    "S4D-euler": partial(S4D, state_size=4, discretization="euler"),
    "S4D-real": partial(S4D, state_size=4, diagonal="real"),
    "Mamba": partial(Mamba, state_size=4),
    "MultiresConv": partial(MultiresConv, levels=3, kernel_size=3),
    "CausalAttention": partial(CausalAttention, heads=2),
}
STACKS: dict[str, Make] = {
    f"{kind}-{norm}-{'pre' if prenorm else 'post'}": partial(make, norm=norm, prenorm=prenorm)
    for kind, make in (
        ("block", lambda d, **options: Block(multi(ssm="s6")(d), **options)),
        ("backbone", lambda d, **options: Backbone(multi(ssm="s6"), d, n_layers=2, **options)),
    )
    for norm in ("batch", "layer")
    for prenorm in (False, True)
}
STACKS |= {
    "backbone-s4": lambda d: Backbone(multi(ssm="s4"), d, n_layers=2),
    "backbone-multires": lambda d: Backbone(BASELINES["MultiresConv"], d, n_layers=2),
    "backbone-attention": lambda d: Backbone(BASELINES["CausalAttention"], d, n_layers=2, norm="layer"),
    "backbone-no-glu": lambda d: Backbone(BASELINES["Mamba"], d, n_layers=2, norm="layer", glu=False),
}
LAYERS = MULTI_SCALE | BASELINES | STACKS
# They see the future, so nothing about states, chunks and causality is said of them.
WHOLE: dict[str, Make] = {
    f"bidirectional-{mix}": partial(Bidirectional, layer=multi(ssm="s6"), mix=mix) for mix in ("linear", "sum")
}
# Silence in, silence out: no bias meets the signal. Attention counts the silent steps in its softmax.
SHIFTING = MULTI_SCALE | {name: BASELINES[name] for name in ("S4D", "S4D-euler", "S4D-real", "MultiresConv")}
SMALL: dict[str, Make] = {
    "s6-zoh": partial(MultiScaleSSM, levels=1, kernel_size=2, state_size=2, skip=True),
    "s6-euler-softmax": partial(
        MultiScaleSSM, levels=1, kernel_size=2, state_size=2, discretization="euler", mixer="softmax"
    ),
    "s4-zoh-heads": partial(MultiScaleSSM, levels=1, kernel_size=2, state_size=2, ssm="s4", mixer_heads=2),
    "s4-complex": partial(MultiScaleSSM, levels=0, state_size=2, ssm="s4", diagonal="complex", skip=True),
    "none-fixed": partial(MultiScaleSSM, levels=2, kernel_size=2, ssm="none", mixer="fixed"),
    "s6-conv-gates-drive": partial(
        MultiScaleSSM,
        levels=0,
        kernel_size=2,
        state_size=2,
        decomposition="conv",
        selective_input="band",
        ssm_input="input",
    ),
    "S4D": partial(S4D, state_size=2),
    "Mamba": partial(Mamba, state_size=2, kernel_size=2),
    "MultiresConv": partial(MultiresConv, levels=2, kernel_size=2),
    "CausalAttention": partial(CausalAttention, heads=1),
    "bidirectional": partial(Bidirectional, layer=partial(MultiresConv, levels=1, kernel_size=2)),
    "block-batch": lambda d: Block(MultiresConv(d, 1, 2), "batch"),
    "backbone-layer-pre": lambda d: Backbone(
        partial(MultiresConv, levels=1, kernel_size=2), d, n_layers=1, norm="layer", prenorm=True
    ),
}


def build(make: Make, width: int = D) -> SequenceLayer:
    """In float64 and in eval, with every parameter and running statistic moved off its neutral start."""
    torch.manual_seed(0)
    layer = make(width).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in layer.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.5 * torch.rand_like(buffer))
    return layer


def signal(length: int, batch: int = 2, width: int = D, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, width, generator=generator, dtype=torch.float64)


def tensors(state: Any) -> list[Tensor]:
    """The leaves of a state."""
    if state is None or isinstance(state, Tensor):
        return [] if state is None else [state]
    return [leaf for part in state for leaf in tensors(part)]


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


def spy_on_scans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """(step size, A) of every scan that runs from now on."""
    seen: list[tuple[Tensor, Tensor]] = []
    for name in ("multiscale_scan", "lti_scan"):
        scan = getattr(msssm.ssm, name)

        def spy(u: Tensor, delta: Tensor, A: Tensor, *rest: Any, _scan: Any = scan, **options: Any) -> Any:
            weight, bias = options.get("delta_weight"), options.get("delta_bias")
            full = delta if weight is None else full_rank(delta, weight)
            seen.append(((full if bias is None else step_size(full, bias)).detach(), A.detach()))
            return _scan(u, delta, A, *rest, **options)

        monkeypatch.setattr(msssm.ssm, name, spy)
    whole = msssm.native_layer.multiscale_scan

    def spy_on_whole(operands: Operands, *rest: Any) -> Any:
        assert operands.delta_weight is not None
        assert operands.delta_bias is not None
        full = full_rank(operands.delta, operands.delta_weight)
        seen.append((step_size(full, operands.delta_bias).detach(), operands.A.detach()))
        return whole(operands, *rest)

    monkeypatch.setattr(msssm.native_layer, "multiscale_scan", spy_on_whole)
    return seen


WITH_SSM = [name for name in (*MULTI_SCALE, *BASELINES) if name[:2] in ("s6", "s4", "S4", "Ma")]


@pytest.mark.parametrize("value", [100.0, -100.0, 1e4, -1e4])
@pytest.mark.parametrize("name", WITH_SSM)
@torch.no_grad()
def test_no_parameter_value_makes_the_recurrence_diverge(
    name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """|exp(delta A)| < 1 and outputs are finite in float32, each SSM parameter in turn and all at once."""
    seen = spy_on_scans(monkeypatch)
    x = signal(20).float()
    ssm_names = [name for name, _ in LAYERS[name](D).ssm.named_parameters()]
    for changed in (*([one] for one in ssm_names), ssm_names):
        layer = build(LAYERS[name]).float()
        for one in changed:
            layer.ssm.get_parameter(one).fill_(value)
        y, state = layer(x, return_state=True)
        assert y.isfinite().all()
        assert all(leaf.isfinite().all() for leaf in tensors(state))
    assert len(seen) == len(ssm_names) + 1
    for delta, A in seen:
        assert (torch.exp(delta.unsqueeze(-1) * A.real) < 1).all()


@pytest.mark.parametrize("name", WITH_SSM)
@torch.no_grad()
def test_the_recurrence_starts_strictly_stable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy_on_scans(monkeypatch)
    LAYERS[name](D).double()(signal(20))
    ((delta, A),) = seen
    assert (torch.exp(delta.unsqueeze(-1) * A).abs() < 1).all()


@pytest.mark.parametrize("ssm", ["s6", "s4"])
@pytest.mark.parametrize("dt_init", [0.001, 0.05, 0.5])
def test_effective_memory_is_its_closed_form(ssm: Any, dt_init: float) -> None:
    """Mean of 1 / (1 - exp(-dt_init k)) over the band's decay rates k; the coarsest remembers longest."""
    S, N = 3, 5
    memory = MultiScaleSSM(D, levels=S, state_size=N, ssm=ssm, dt_init=dt_init).effective_memory()
    expected = [
        sum(1 / (1 - math.exp(-dt_init * (N * (S + 1 - s) + n + 1))) for n in range(N)) / N for s in range(S + 2)
    ]
    assert memory.shape == (S + 2,)
    assert memory.tolist() == pytest.approx(expected, rel=OUTPUT[torch.float32])
    assert (memory.diff() > 0).all()


def test_effective_memory_of_the_other_layers() -> None:
    fixed = {"dt_min": 0.1, "dt_max": 0.1, "state_size": 4}
    mamba_like = sum(1 / (1 - math.exp(-0.1 * k)) for k in (1, 2, 3, 4)) / 4
    lin = 1 / (1 - math.exp(-0.1 / 2))
    for layer, expected in ((Mamba(D, **fixed), mamba_like), (S4D(D, **fixed), lin)):  # type: ignore[arg-type]
        assert layer.effective_memory().tolist() == pytest.approx([expected], rel=OUTPUT[torch.float32])
    complex_ = MultiScaleSSM(D, state_size=4, ssm="s4", diagonal="complex", dt_init=0.1)
    assert complex_.effective_memory().tolist() == pytest.approx([lin] * 5, rel=OUTPUT[torch.float32])
    with pytest.raises(ValueError, match="ssm='none'"):
        MultiScaleSSM(D, ssm="none").effective_memory()


@pytest.mark.parametrize("value", [-100.0, 0.0, 100.0])
def test_effective_memory_follows_the_parameters_as_the_recurrence_does(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is of the decay that the scan is given, wherever training drove the parameters."""
    seen = spy_on_scans(monkeypatch)
    layer = MultiScaleSSM(D, levels=1, state_size=2, ssm="s4").double()
    torch.nn.init.constant_(layer.ssm.log_delta, value)
    torch.nn.init.constant_(layer.ssm.log_rate, -value)
    layer(torch.zeros(1, 2, D, dtype=torch.float64))
    ((delta, A),) = seen
    expected = (1 / (1 - torch.exp(delta.unsqueeze(-1) * A))).mean((1, 2))
    assert_near(layer.effective_memory(), expected, OUTPUT[torch.float64])


@pytest.mark.parametrize("discretization", ["zoh", "euler"])
@pytest.mark.parametrize(("mixer", "heads"), [("input", 1), ("input", 2), ("softmax", 4), ("fixed", 1), ("sum", 1)])
@pytest.mark.parametrize("ssm", ["s6", "s4", "none"])
@torch.no_grad()
def test_multi_scale_ssm_is_the_papers_equations(ssm: Any, mixer: Any, heads: int, discretization: Any) -> None:
    """Decompose, one recurrence per band gated by the raw input, mix with E_t: written out in plain loops."""
    S, K, N, L = 2, 3, 3, 12
    M = S + 2
    make = partial(MultiScaleSSM, levels=S, kernel_size=K, state_size=N, ssm=ssm, mixer=mixer, skip=True)
    layer = build(partial(make, mixer_heads=heads, discretization=discretization, dt_rank=2))
    p = {name: value.numpy() for name, value in layer.named_parameters()}
    x = signal(L, batch=1)[0].numpy()

    u = np.zeros((M, L, D))
    a = u[0] = x
    for s in range(1, S + 1):
        past = np.concatenate((np.zeros(((K - 1) * 2 ** (s - 1), D)), a))
        taps = [past[(K - 1 - k) * 2 ** (s - 1) :][:L] for k in range(K)]
        u[s] = sum(p["decomposition.high"][s - 1, k] * taps[k] for k in range(K))
        a = sum(p["decomposition.low"][s - 1, k] * taps[k] for k in range(K))
    u[S + 1] = a

    h, z = np.zeros((M, D, N)), np.zeros((L, D))
    for t in range(L):
        if mixer in ("input", "softmax"):
            E = (p["mixer.projection.weight"] @ x[t] + p["mixer.projection.bias"]).reshape(M, heads)
            E = np.exp(E) / np.exp(E).sum(0) if mixer == "softmax" else E
        else:
            E = p["mixer.weight"] if mixer == "fixed" else np.ones((M, heads))
        for s in range(M):
            y = u[s, t]
            if ssm == "s6":
                low_rank, B, C = np.split(p["ssm.projection.weight"].reshape(M, -1, D)[s] @ x[t], (2, 2 + N))
                delta = np.log1p(np.exp(low_rank @ p["ssm.delta_weight"][s] + p["ssm.delta_bias"][s]))
            elif ssm == "s4":
                delta, B, C = np.exp(p["ssm.log_delta"][s]), np.ones(N), p["ssm.C"][s]
            if ssm != "none":
                A = -np.exp(p["ssm.log_rate"][s])
                A_bar = np.exp(delta[:, None] * A)
                B_bar = ((A_bar - 1) / A if discretization == "zoh" else delta[:, None]) * B
                h[s] = A_bar * h[s] + B_bar * u[s, t, :, None]
                y = (h[s] * C).sum(1) + p["ssm.skip"][s] * u[s, t]
            z[t] += np.repeat(E[s], D // heads) * y
    assert_near(layer(torch.from_numpy(x)[None])[0], torch.from_numpy(z), OUTPUT[torch.float64])


@pytest.mark.parametrize(("gates", "drive"), [("band", "band"), ("band", "input"), ("input", "input")])
@torch.no_grad()
def test_a_band_that_is_gated_or_driven_otherwise_is_its_formula(gates: Any, drive: Any) -> None:
    """Table 5's variants: per band one single-band S6 with that band's parameters, on the sequences named."""
    layer, x = build(multi(selective_input=gates, ssm_input=drive, mixer="sum")), signal(15)
    bands, N, total = layer.decomposition(x), 4, torch.zeros_like(signal(15))
    for s in range(4):
        seen, fed = (bands[:, :, s] if which == "band" else x for which in (gates, drive))
        ssm = layer.ssm
        weight = ssm.projection.weight.unflatten(0, (4, -1))[s]
        low_rank, B, C = (seen @ weight.T).split((ssm.rank, N, N), dim=-1)
        delta = torch.nn.functional.softplus(low_rank @ ssm.delta_weight[s] + ssm.delta_bias[s])
        total += selective_scan(fed, delta, -torch.exp(ssm.log_rate[s]), B, C, backend="reference")
    assert_near(layer(x), total, OUTPUT[torch.float64])


@pytest.mark.parametrize("make", [multi(selection_norm=True), partial(Mamba, state_size=4, selection_norm=True)])
@torch.no_grad()
def test_a_normed_selection_is_the_selection_over_its_root_mean_square(make: Make) -> None:
    ssm = build(make).ssm
    x = torch.cat([signal(15)] * (ssm.projection.in_features // D), dim=-1)
    normed = ssm.selection(x)
    ssm.selection_norm = False
    for each, plain in zip(normed, ssm.selection(x), strict=True):
        assert_near(each, plain / (plain.square().mean(-1, keepdim=True) + 1e-5).sqrt(), OUTPUT[torch.float64])


@torch.no_grad()
def test_short_convolutions_in_place_of_the_decomposition_see_their_taps_only() -> None:
    """Each band past the input is numpy's convolution of each channel with its own taps."""
    layer, x = build(multi(ssm="none", decomposition="conv")), signal(15)
    bands = layer.decomposition(x)
    assert torch.equal(bands[:, :, 0], x)
    for s, taps in enumerate(layer.decomposition.taps, start=1):
        for b, d in itertools.product(range(2), range(D)):
            expected = np.convolve(x[b, :, d], taps[:, d])[:15]
            assert_near(bands[b, :, s, d], torch.from_numpy(expected), OUTPUT[torch.float64])


@pytest.mark.parametrize("glu", [True, False])
@pytest.mark.parametrize("prenorm", [True, False])
@torch.no_grad()
def test_block_is_its_formula(prenorm: bool, glu: bool) -> None:
    block = build(lambda d: Block(MultiresConv(d, 2, 2), "layer", prenorm, glu))
    x = signal(9)

    def norm(v: Tensor) -> Tensor:
        centred = v - v.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
        return scaled * block.norm.inner.weight + block.norm.inner.bias

    inner = block.layer(norm(x) if prenorm else x)
    if glu:
        gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        value, gate = (gelu @ block.glu.weight.T + block.glu.bias).split(D, -1)
        inner = value / (1 + torch.exp(-gate))
    assert_near(block(x), x + inner if prenorm else norm(x + inner), OUTPUT[torch.float64])


@torch.no_grad()
def test_dropout_drops_whole_channels_of_a_row_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    block = Block(MultiresConv(50, 1, 2), "layer", prenorm=True, dropout=0.25).double().train()
    x = torch.randn(40, 3, 50, dtype=torch.float64)
    kept = (block(x) - x).abs().amax(1) > 0
    dropped_fraction = 1 - kept.float().mean().item()
    assert dropped_fraction == pytest.approx(
        0.25, abs=allowed(5 * math.sqrt(0.25 * 0.75 / kept.numel()), "5 standard errors")
    )
    full = block.eval()(x) - x
    some = block.train()(x) - x
    assert_near(some, torch.where(some == 0, 0, full * 4 / 3), OUTPUT[torch.float64])


@pytest.mark.parametrize("prenorm", [True, False])
@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_stochastic_depth_drops_the_branch_of_whole_rows_and_keeps_its_mean(prenorm: bool, compiled: bool) -> None:
    """In training every row is x or x + f(x) / (1 - p), before the norm of a post-norm block; in evaluation nothing."""
    torch.manual_seed(0)
    rows = 2000
    block = Block(MultiresConv(D, 1, 2), "layer", prenorm, drop_path=0.25).double()
    x = signal(5, batch=1)
    f = block.glu(torch.nn.functional.gelu(block.layer(block.norm(x) if prenorm else x)))  # type: ignore[misc]
    f = torch.nn.functional.glu(f, dim=-1)
    after = (lambda y: y) if prenorm else block.norm
    assert_near(block.eval()(x), after(x + f), OUTPUT[torch.float64])
    run = torch.compile(block, backend="aot_eager", fullgraph=True) if compiled else block
    y = run.train()(x.expand(rows, -1, -1))
    dropped = (y == after(x)).flatten(1).all(1)
    assert_near(y, torch.where(dropped.view(-1, 1, 1), after(x), after(x + f * 4 / 3)), OUTPUT[torch.float64])
    error = 5 * math.sqrt(0.25 * 0.75 / rows)
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=allowed(error, "5 standard errors"))
    if prenorm:
        assert_near(y.mean(0), (x + f)[0], allowed(error * 4 / 3, "5 standard errors of the branch"))


@torch.no_grad()
def test_stochastic_depth_leaves_lengths_and_state() -> None:
    """A row that is dropped still moves the layer's state; its padding changes nothing."""
    torch.manual_seed(0)
    block = Block(multi()(D), "layer", prenorm=True, drop_path=0.5).double()
    x, lengths = signal(9, batch=16), torch.tensor([9, 4] * 8)
    whole, state = block.eval()(x, lengths, return_state=True)
    y, trained = block.train()(x, lengths, return_state=True)
    for one, other in zip(tensors(trained), tensors(state), strict=True):
        assert torch.equal(one, other)
    kept = [not torch.equal(y[row, : lengths[row]], x[row, : lengths[row]]) for row in range(16)]
    assert 0 < sum(kept) < 16
    for row, length in enumerate(lengths.tolist()):
        expected = x + 2 * kept[row] * (whole - x)
        assert_near(y[row, :length], expected[row, :length], OUTPUT[torch.float64])
    stepped, _ = block.step(x[:, 0], block.initial_state(16))
    once = (stepped == x[:, 0]).all(1)
    assert 0 < once.sum() < 16
    assert_near(stepped[~once], (2 * whole - x)[~once, 0], OUTPUT[torch.float64])
    assert_near(block.eval().step(x[:, 0], block.initial_state(16))[0], whole[:, 0], OUTPUT[torch.float64])


def test_the_rates_of_stochastic_depth_grow_linearly() -> None:
    assert [block.drop_path for block in Backbone(S4D, 4, 5, drop_path=0.5).blocks] == [0, 0.125, 0.25, 0.375, 0.5]
    assert [block.drop_path for block in Backbone(S4D, 4, 1, drop_path=0.5).blocks] == [0]
    assert [block.drop_path for block in Backbone(S4D, 4, 2).blocks] == [0, 0]


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
