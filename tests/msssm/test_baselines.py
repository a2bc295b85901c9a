"""Each single-scale layer against its definition, written out."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from msssm import MultiScaleSSM, SequenceLayer
from msssm.baselines import S4D, CausalAttention, Mamba, MultiresConv
from tests.support.tolerances import FLOAT32, OUTPUT, allowed, assert_near

D, LENGTH = 4, 21


def moved(layer: SequenceLayer, dtype: torch.dtype = torch.float64) -> SequenceLayer:
    """The layer with every parameter off its start, so that none is neutral."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer.to(dtype)


def signal(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, LENGTH, D, generator=torch.Generator().manual_seed(1), dtype=dtype)


def numbers(layer: SequenceLayer) -> dict[str, np.ndarray]:
    """Parameters in float64."""
    return {name: value.detach().double().numpy() for name, value in layer.named_parameters()}


@pytest.mark.parametrize("discretization", ["zoh", "euler"])
@pytest.mark.parametrize("diagonal", ["complex", "real"])
def test_s4d_is_its_convolution_kernel(diagonal: str, discretization: str) -> None:
    """y_t = sum_l K_l x_{t-l} + D x_t, K_l = 2 Re sum_n C_n (exp(dt A) - 1) / A exp(dt A l)."""
    layer = moved(S4D(D, 6, diagonal, discretization, dt_min=0.05, dt_max=0.5))  # type: ignore[arg-type]
    p = {name: value[0] for name, value in numbers(layer).items()}
    if diagonal == "complex":
        A, C, twice = -np.exp(p["ssm.log_rate"]) + 1j * p["ssm.frequency"], p["ssm.C"] @ [1, 1j], 2
    else:
        A, C, twice = -np.exp(p["ssm.log_rate"]), p["ssm.C"], 1
    dt = np.exp(p["ssm.log_delta"])[:, None]
    gain = (np.exp(dt * A) - 1) / A if discretization == "zoh" else dt
    x = signal().numpy()
    expected = p["ssm.skip"] * x
    for t in range(LENGTH):
        for lag in range(t + 1):
            kernel = twice * (C * gain * np.exp(dt * A * lag)).sum(1).real
            expected[:, t] += kernel * x[:, t - lag]
    assert_near(layer(signal()), torch.from_numpy(expected), OUTPUT[torch.float64])


def test_s4d_starts_as_s4d_lin() -> None:
    """A_n = -1/2 + i pi n for N / 2 pairs, D = 1."""
    layer = S4D(3, state_size=8)
    assert torch.equal(torch.exp(layer.ssm.log_rate), torch.full((1, 3, 4), 0.5))
    expected = math.pi * torch.arange(4.0).expand(1, 3, 4)
    assert_near(layer.ssm.frequency, expected, OUTPUT[torch.float32])
    assert (layer.ssm.skip == 1).all()


def test_mamba_is_its_loop() -> None:
    """in-projection, causal convolution, SiLU, dt, B and C, Euler recurrence, D, gate, out-projection."""
    N, K, rank = 3, 4, 1
    layer = moved(Mamba(D, state_size=N, expand=2, kernel_size=K))
    p, E = numbers(layer), 2 * D

    def silu(v: np.ndarray) -> np.ndarray:
        return v / (1 + np.exp(-v))

    expected = np.zeros((2, LENGTH, D))
    for b, x in enumerate(signal().numpy()):
        u, gate = np.split(x @ p["input.weight"].T, 2, axis=1)
        h = np.zeros((E, N))
        A = -np.exp(p["ssm.log_rate"][0])
        for t in range(LENGTH):
            v = p["bias"] + sum(p["taps"][k] * u[t - k] for k in range(K) if t - k >= 0)
            v = silu(v)
            low_rank, B, C = np.split(p["ssm.projection.weight"] @ v, (rank, rank + N))
            dt = np.log1p(np.exp(low_rank @ p["ssm.delta_weight"][0] + p["ssm.delta_bias"][0]))
            h = np.exp(dt[:, None] * A) * h + dt[:, None] * B * v[:, None]
            y = h @ C + p["ssm.skip"][0] * v
            expected[b, t] = p["output.weight"] @ (y * silu(gate[t]))
    assert_near(layer(signal()), torch.from_numpy(expected), OUTPUT[torch.float64])


def test_mamba_starts_as_published() -> None:
    """A = -(1..N), D = 1, rank ceil(D / 16) of the inner width's projection, steps in [0.001, 0.1]."""
    layer = Mamba(40)
    assert_near(layer.ssm.log_rate.exp(), torch.arange(1.0, 17).expand(1, 80, 16), OUTPUT[torch.float32])
    assert (layer.ssm.skip == 1).all()
    assert layer.ssm.delta_weight.shape == (1, 3, 80)
    steps = F.softplus(layer.ssm.delta_bias)
    assert 0.001 * (1 - FLOAT32) <= steps.min() <= steps.max() <= 0.1 * (1 + FLOAT32)


def tree(x: Tensor, low: list[Tensor], high: list[Tensor]) -> list[Tensor]:
    """[x, d^1 .. d^S, a^S] by nested dilated depthwise convolutions, (B, L, D) each; taps (K, D), newest first."""
    a, bands = x.transpose(1, 2), [x]
    for level, (phi, psi) in enumerate(zip(low, high, strict=True)):
        past = F.pad(a, ((len(phi) - 1) * 2**level, 0))
        kernels = [taps.flip(0).T.unsqueeze(1) for taps in (phi, psi)]
        a, d = (F.conv1d(past, kernel, dilation=2**level, groups=D) for kernel in kernels)
        bands.append(d.transpose(1, 2))
    return [*bands, a.transpose(1, 2)]


@torch.no_grad()
def test_multiresnet_is_nested_convolutions_and_fading_weights() -> None:
    """y = w_0 x + sum_s w_s d^s + w_{S+1} a^S per channel, one pair of filters for all levels."""
    levels = 3
    layer = moved(MultiresConv(D, levels, kernel_size=4))
    shared = layer.decomposition
    bands = tree(signal(), [shared.low[0]] * levels, [shared.high[0]] * levels)
    expected = sum(weight * band for weight, band in zip(layer.mixer.weight, bands, strict=True))
    assert_near(layer(signal()), expected, OUTPUT[torch.float64])


def test_multiresnet_starts_with_unit_gain_over_the_bands() -> None:
    """w ~ U(-1, 1) / sqrt(S + 2)."""
    torch.manual_seed(0)
    weight = MultiresConv(2000, levels=8).mixer.weight
    assert weight.abs().max() <= 10**-0.5
    assert weight.var().item() == pytest.approx(1 / 30, rel=allowed(0.03, "5 standard errors"))


@torch.no_grad()
def test_without_state_space_models_the_bands_are_mixed_as_they_are() -> None:
    layer = moved(MultiScaleSSM(D, levels=2, kernel_size=3, ssm="none", mixer="input"))
    x = signal()
    bands = tree(x, list(layer.decomposition.low), list(layer.decomposition.high))
    weights = x @ layer.mixer.projection.weight.T + layer.mixer.projection.bias
    expected = sum(weights[..., s : s + 1] * band for s, band in enumerate(bands))
    assert_near(layer(x), expected, OUTPUT[torch.float64])


def test_attention_is_a_softmax_over_rotated_keys() -> None:
    """<R_t q_t, R_j k_j> / sqrt(d), j <= t, pairs (i, i + d/2) turned by t 10000^(-2 i / d)."""
    heads, d = 2, D // 2
    layer = moved(CausalAttention(D, heads), torch.float32)
    p = numbers(layer)

    def rotate(v: np.ndarray, t: int) -> np.ndarray:
        angle = t * 10_000 ** (-2 * np.arange(d // 2) / d)
        first, second = v[: d // 2], v[d // 2 :]
        return np.concatenate(
            (first * np.cos(angle) - second * np.sin(angle), first * np.sin(angle) + second * np.cos(angle))
        )

    x = signal(torch.float32)
    expected = np.zeros((2, LENGTH, D))
    for b in range(2):
        q, k, v = np.split(x[b].double().numpy() @ p["input.weight"].T + p["input.bias"], 3, axis=1)
        for t in range(LENGTH):
            attended = np.zeros(D)
            for head in range(heads):
                own = slice(head * d, (head + 1) * d)
                scores = [rotate(q[t, own], t) @ rotate(k[j, own], j) / math.sqrt(d) for j in range(t + 1)]
                weights = np.exp(scores) / np.exp(scores).sum()
                attended[own] = weights @ v[: t + 1, own]
            expected[b, t] = p["output.weight"] @ attended + p["output.bias"]
    assert_near(layer(x), torch.from_numpy(expected), OUTPUT[torch.float32])
