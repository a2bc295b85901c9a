"""Initial decay rates and step sizes: the paper's figure, and the ranges that were asked for."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from msssm import MultiScaleSSM
from msssm.initialization import initial_A, initial_delta, inverse_softplus, scale_dependent_A
from tests.support.tolerances import METRIC, OUTPUT, allowed, assert_near


def test_the_coarsest_bands_decay_as_in_the_papers_figure() -> None:
    """Figure 2, N = 3, delta 0.2: the three coarsest bands hold exp(-0.2 k), k = 1..9, coarsest first."""
    decays = torch.exp(0.2 * scale_dependent_A(levels=3, state_size=3))
    coarsest_first = decays.flip(0)[:3].flatten()
    expected = torch.tensor([math.exp(-0.2 * k) for k in range(1, 10)])
    assert_near(coarsest_first, expected, OUTPUT[torch.float32])


@pytest.mark.parametrize(("levels", "state_size"), [(0, 1), (0, 4), (3, 3), (5, 16)])
def test_the_union_over_bands_is_s4d_real(levels: int, state_size: int) -> None:
    A = scale_dependent_A(levels, state_size)
    assert A.shape == (levels + 2, state_size)
    union = sorted(-A.flatten())
    assert union == list(range(1, (levels + 2) * state_size + 1))
    for s in range(levels + 2):
        for n in range(state_size):
            assert A[s, n] == -(state_size * (levels + 1 - s) + n + 1)


def test_the_printed_formula_would_diverge_at_the_coarsest_band() -> None:
    """As printed, A = -N (S - s) - n - 1 reaches N - 1 > 0 at s = S + 1; the corrected range is one band lower."""
    levels, N = 3, 4
    A = scale_dependent_A(levels, N)
    printed_coarsest = A[-1] + N
    assert printed_coarsest[0] > 0
    assert (A < 0).all()


def test_mambas_initialization_is_the_same_in_every_band() -> None:
    assert initial_A(5, 4, "mamba").tolist() == [[-1, -2, -3, -4]] * 5
    assert torch.equal(initial_A(5, 4, "scale"), scale_dependent_A(3, 4))


def test_step_sizes_are_log_uniform() -> None:
    """log delta has the mean and the variance of a uniform law on [log dt_min, log dt_max]."""
    torch.manual_seed(0)
    delta = initial_delta((200, 500), 0.001, 0.1, None)
    assert 0.001 * (1 - METRIC) <= delta.min() <= delta.max() <= 0.1 * (1 + METRIC)
    width = math.log(100)
    standard_error = width / math.sqrt(12 * delta.numel())
    assert delta.log().mean().item() == pytest.approx(
        math.log(0.01), abs=allowed(5 * standard_error, "5 standard errors")
    )
    assert delta.log().std().item() == pytest.approx(width / math.sqrt(12), rel=allowed(0.006, "4 standard errors"))


def test_one_step_size_for_all() -> None:
    assert initial_delta((2, 3), 0.001, 0.1, 0.2).tolist() == torch.full((2, 3), 0.2).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_softplus_inverts_softplus(dtype: torch.dtype) -> None:
    """softplus'(y) = 1 - exp(-x) <= x: a rounding eps |y| of y, |y| <= 28, is one of 28 eps x in x."""
    x = torch.logspace(-12, 3, 61, dtype=dtype)
    assert ((F.softplus(inverse_softplus(x)) - x).abs() <= OUTPUT[dtype] * x).all()


@pytest.mark.parametrize("ssm", ["s6", "s4"])
def test_layers_start_with_the_step_sizes_and_rates_asked_for(ssm: Any) -> None:
    torch.manual_seed(0)
    layer = MultiScaleSSM(64, levels=2, state_size=3, ssm=ssm, dt_min=0.01, dt_max=0.05)
    delta = F.softplus(layer.ssm.delta_bias) if ssm == "s6" else layer.ssm.log_delta.exp()
    assert delta.shape == (4, 64)
    assert 0.01 * (1 - 1e-5) <= delta.min() < 0.012
    assert 0.045 < delta.max() <= 0.05 * (1 + METRIC)
    rates = -torch.exp(layer.ssm.log_rate).transpose(1, 2)
    assert_near(rates, scale_dependent_A(2, 3).unsqueeze(-1).expand(-1, -1, 64), OUTPUT[torch.float32])


def test_complex_bands_share_out_s4d_lin() -> None:
    """Real parts -1/2; frequencies pi n, n = 0.. over the union of the bands, the coarsest band lowest."""
    layer = MultiScaleSSM(2, levels=1, state_size=4, ssm="s4", diagonal="complex")
    assert torch.equal(layer.ssm.log_rate.exp(), torch.full((3, 2, 2), 0.5))
    order = torch.tensor([[4.0, 5.0], [2.0, 3.0], [0.0, 1.0]]).unsqueeze(1).expand(3, 2, 2)
    assert_near(layer.ssm.frequency, math.pi * order, OUTPUT[torch.float32])


def test_a_mixer_starts_as_the_sum_of_the_bands() -> None:
    """At zero input, where the projection is silent, every weight is `mixer_init`."""
    mixer = MultiScaleSSM(4, levels=2, mixer_heads=2, mixer_init=0.5).mixer
    assert mixer(torch.zeros(1, 3, 4)).tolist() == torch.full((1, 3, 4, 2), 0.5).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2,), 0.1, 0.01, None), "0 < dt_min <= dt_max, got 0.1 and 0.01"),
        (((2,), 0.0, 0.1, None), "0 < dt_min <= dt_max, got 0.0 and 0.1"),
        (((2,), 0.001, 0.1, 0.0), "dt_init must be positive, got 0.0"),
    ],
)
def test_a_bad_range_is_named(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        initial_delta(*arguments)


def test_an_unknown_initialization_is_named() -> None:
    with pytest.raises(ValueError, match="'scale' or 'mamba', got 'hippo'"):
        initial_A(3, 2, "hippo")  # type: ignore[arg-type]
