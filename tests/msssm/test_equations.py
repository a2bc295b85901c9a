"""The multi-scale layer and its variants are their equations, written out."""

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from msssm import MultiScaleSSM
from msssm.baselines import Mamba
from msssm.scan import selective_scan
from tests.support.layers import D, Make, build, multi, signal
from tests.support.tolerances import OUTPUT, assert_near


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
