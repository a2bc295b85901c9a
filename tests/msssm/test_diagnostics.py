"""Each diagnostic against a case with a closed form, or against the definition written out."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from msssm import Backbone, MultiScaleSSM
from msssm.baselines import CausalAttention, Mamba
from msssm.decomposition import MultiScaleDecomposition
from msssm.diagnostics import (
    band_memory,
    impulse_response,
    largest_eigenvalue,
    mixer_report,
    mixer_shares,
    mixing_distance,
    padding_error,
    receptive_field,
    shift_error,
    trace_calls,
)
from msssm.scan.decomposition.torch import dilated_convolution
from msssm.ssm import S4, S6
from tests.support.tolerances import FLOAT64, METRIC, OUTPUT, assert_near

F64 = torch.float64


def signal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=F64)


def one_pole(decays: list[list[float]], weights: list[list[float]]) -> S4:
    """Bands of S4 with modes exp(-decay) and output weights so that h_j = sum_n weight_n exp(-decay_n j)."""
    ssm = S4(1, len(decays), len(decays[0]), dt_init=1.0).double()
    rate, weight = torch.tensor(decays, dtype=F64).unsqueeze(1), torch.tensor(weights, dtype=F64).unsqueeze(1)
    with torch.no_grad():
        ssm.log_delta.zero_()
        ssm.log_rate.copy_(rate.log())
        ssm.C.copy_(weight * rate / -torch.expm1(-rate))
    return ssm


@pytest.mark.parametrize("tau", [1.0, 5.0, 40.0])
def test_memory_of_one_mode_is_the_same_measured_and_from_its_parameters(tau: float) -> None:
    memory = band_memory(one_pole([[1 / tau]], [[-0.7]]), signal(1, 2000, 1))
    exact = 1 / (1 - math.exp(-1 / tau))
    assert memory.parameters.item() == pytest.approx(exact, rel=FLOAT64)
    assert memory.measured.item() == pytest.approx(exact, rel=FLOAT64)
    assert memory.tail.item() < FLOAT64


def test_memory_of_modes_of_equal_weight_agrees_and_of_unequal_weight_follows_the_weights() -> None:
    taus = (2.0, 50.0)
    one, two = (1 / (1 - math.exp(-1 / tau)) for tau in taus)
    ssm = one_pole([[1 / tau for tau in taus]] * 2, [[1.0, 1.0], [3.0, 1.0]])
    memory = band_memory(ssm, signal(1, 3000, 1), position=100)
    assert memory.parameters.tolist() == pytest.approx([(one + two) / 2] * 2, rel=FLOAT64)
    assert memory.measured.tolist() == pytest.approx([(one + two) / 2, (3 * one + two) / 4], rel=FLOAT64)


def test_a_sequence_too_short_for_the_memory_shows_in_the_tail() -> None:
    """A last tenth of 10 of 100 steps of exp(-t / 1000) holds (e^-.09 - e^-.1) / (1 - e^-.1) of them."""
    memory = band_memory(one_pole([[1e-3]], [[1.0]]), signal(1, 100, 1))
    expected = (math.exp(-0.09) - math.exp(-0.1)) / (1 - math.exp(-0.1))
    assert memory.tail.item() == pytest.approx(expected, rel=FLOAT64)
    assert memory.measured.item() < 0.15 * memory.parameters.item()


@torch.no_grad()
def test_the_impulse_response_of_a_selective_model_is_its_recurrence_at_the_inputs_gates() -> None:
    torch.manual_seed(0)
    ssm, x, start = S6(3, 2, 4, skip=True).double(), signal(2, 12, 3), 5
    torch.nn.init.uniform_(ssm.skip)
    response = impulse_response(ssm, x, start)
    delta, A = ssm.delta(x), ssm.diagonal()
    _, B, C = ssm.projection(x).unflatten(-1, (2, -1)).split((ssm.rank, 4, 4), dim=-1)
    for band in range(2):
        decay = torch.exp(delta[:, :, band, :, None] * A[band])
        h = (decay[:, start] - 1) / A[band] * B[:, start, band, None]
        for lag in range(12 - start):
            h = h * decay[:, start + lag] if lag else h
            expected = (h * C[:, start + lag, band, None]).sum(-1) + (ssm.skip[band] if lag == 0 else 0)
            assert_near(response[:, band, lag], expected, OUTPUT[F64])
    with pytest.raises(ValueError, match=r"position must lie in 0..11, got 12"):
        impulse_response(ssm, x, 12)


@pytest.mark.parametrize("ssm", ["s6", "s4"])
def test_the_largest_eigenvalue_of_a_band_is_its_slowest_modes(ssm: Any) -> None:
    """exp(-dt_init (N (S + 1 - s) + 1)) at the start."""
    S, N, dt_init = 2, 3, 0.1
    layer = MultiScaleSSM(4, levels=S, state_size=N, ssm=ssm, dt_init=dt_init).double()
    rates = torch.tensor([N * (S + 1 - s) + 1.0 for s in range(S + 2)], dtype=F64)
    assert_near(largest_eigenvalue(layer.ssm), torch.exp(-dt_init * rates), OUTPUT[torch.float32])


def test_the_largest_eigenvalue_at_an_input_is_over_its_steps() -> None:
    torch.manual_seed(0)
    ssm, x = S6(3, 2, 4).double(), 5 * signal(2, 9, 3)
    every_step = torch.exp(ssm.delta(x).unsqueeze(-1) * ssm.diagonal())
    assert_near(largest_eigenvalue(ssm, x), every_step.amax((0, 1, 3, 4)), OUTPUT[F64])
    assert (largest_eigenvalue(ssm, x) > largest_eigenvalue(ssm)).all()


def test_the_largest_complex_eigenvalue() -> None:
    """S4D-Lin with delta 0.1: |exp(0.1 (-1/2 + i pi n))|."""
    ssm = S4(2, 1, 4, "mamba", "complex", dt_init=0.1).double()
    assert largest_eigenvalue(ssm).item() == pytest.approx(math.exp(-0.05), rel=METRIC)


@pytest.mark.parametrize(("levels", "kernel_size"), [(0, 4), (1, 1), (3, 2), (3, 4), (5, 3)])
def test_the_receptive_field_is_where_gradients_arrive(levels: int, kernel_size: int) -> None:
    torch.manual_seed(0)
    decomposition = MultiScaleDecomposition(1, levels, kernel_size).double()
    x = signal(1, 200, 1).requires_grad_()
    bands = decomposition(x)
    for band, field in enumerate(receptive_field(decomposition).tolist()):
        (gradient,) = torch.autograd.grad(bands[0, -1, band, 0], x, retain_graph=True)
        assert 200 - gradient.flatten().nonzero().min().item() == field


def fir(taps: Tensor) -> Any:
    """y[t, d] = sum_l taps[l, d] x[t - l, d]."""
    last = len(taps) - 1
    return lambda x: dilated_convolution(torch.nn.functional.pad(x, (0, 0, last, 0)), taps, 1)


@pytest.mark.parametrize("chunk", [1, 2, 16])
def test_mixing_distance_of_a_filter_is_the_mean_lag_of_its_taps(chunk: int) -> None:
    taps = torch.tensor([[1.0, 0.0, 0.5], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [2.0, -3.0, 0.5]], dtype=F64)
    mixing = mixing_distance(fir(taps), signal(20, 3), chunk=chunk)
    assert mixing.distance.tolist() == pytest.approx([(1 + 6) / 4, 3.0, 1.5])
    profile = (taps.abs() / taps.abs().sum(0)).mean(1)
    assert_near(mixing.profile[:4], profile, OUTPUT[F64])
    assert mixing.profile[4:].abs().max() == 0
    assert mixing.distance.mean().item() == pytest.approx((mixing.profile * torch.arange(20)).sum().item())


def test_mixing_distance_counts_all_input_channels() -> None:
    """y_0 = x_0[t] + x_1[t - 2] / 2: d = (0 + 2 / 2) / 1.5; y_1 = 0 reaches nothing."""

    def function(x: Tensor) -> Tensor:
        late = torch.nn.functional.pad(x, (0, 0, 2, 0))[:, : x.shape[1]]
        return torch.stack((x[..., 0] + late[..., 1] / 2, 0 * x[..., 0]), dim=-1)

    x = signal(6, 2)
    assert mixing_distance(function, x).distance.tolist() == pytest.approx([2 / 3, 0.0])
    assert mixing_distance(function, x, channels=[1, 0]).distance.tolist() == pytest.approx([0.0, 2 / 3])


@pytest.mark.parametrize("make", [partial(MultiScaleSSM, levels=2, state_size=3), Mamba, CausalAttention])
def test_mixing_distance_is_that_of_the_whole_jacobian(make: Any) -> None:
    """Written out on the dense (L, D, L, D) Jacobian, of a backbone of two layers."""
    torch.manual_seed(0)
    L, D = 7, 8
    backbone, x = Backbone(make, D, n_layers=2, norm="batch").double().eval(), signal(L, D)
    mixing = mixing_distance(backbone, x, chunk=3)
    jacobian = torch.autograd.functional.jacobian(lambda v: backbone(v.unsqueeze(0))[0], x)[-1]  # (D, L, D)
    for c in range(D):
        size = jacobian[c].abs().sum(1)
        d = sum(size[n] * (L - 1 - n) for n in range(L)) / size.sum()
        assert mixing.distance[c].item() == pytest.approx(d.item(), rel=FLOAT64)


def test_mixing_distance_names_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"one input of shape \(L, D\), got shape \(1, 4, 2\)"):
        mixing_distance(fir(torch.ones(2, 2)), signal(1, 4, 2))


def test_mixer_shares_and_effective_bands_of_known_weights() -> None:
    """(3, -1, 0, 0): shares 3/4 and 1/4, exp(entropy) = 4 / 3^(3/4)."""
    weights = torch.tensor([3.0, -1.0, 0.0, 0.0], dtype=F64).view(4, 1).expand(5, 4, 1)
    report = mixer_report(weights)
    assert report.mean.tolist() == pytest.approx([0.75, 0.25, 0, 0])
    assert report.effective_bands == pytest.approx(4 / 3**0.75)
    assert report.spread.tolist() == [0] * 4
    assert not report.collapsed
    assert not report.uniform
    assert mixer_shares(torch.zeros(3, 4, 2)).unique().tolist() == [0.25]


def test_mixer_alarms() -> None:
    one = torch.zeros(6, 4, 2)
    one[:, 1] = -2.0
    assert mixer_report(one).collapsed
    assert mixer_report(one).effective_bands == pytest.approx(1)
    plain_sum = mixer_report(torch.ones(6, 4, 2))
    assert plain_sum.uniform
    assert plain_sum.effective_bands == pytest.approx(4)
    # Uniform on average, but with a choice at every step: each step has one band, in turn.
    turns = mixer_report(torch.eye(4).repeat(3, 1).unsqueeze(-1))
    assert turns.mean.tolist() == pytest.approx([0.25] * 4)
    assert not turns.uniform
    assert turns.collapsed
    assert turns.spread.tolist() == pytest.approx([math.sqrt(3) / 4] * 4)


def test_shift_error_is_of_rounding_for_a_layer_and_its_size_for_a_clock() -> None:
    torch.manual_seed(0)
    layer, x = MultiScaleSSM(4).double(), signal(2, 30, 4)
    assert shift_error(layer, x, 5) < OUTPUT[F64]
    ones = torch.ones(1, 10, 1, dtype=F64)
    clock = torch.arange(1.0, 100.0, dtype=F64).view(1, -1, 1)
    assert shift_error(lambda v: v * clock[:, : v.shape[1]], ones, 3) == pytest.approx(3 / 10)
    stride = torch.arange(30).view(1, -1, 1) % 2
    assert shift_error(lambda v: v * stride[:, : v.shape[1]], ones, 3) == pytest.approx(1)


def test_padding_error_sees_a_leak() -> None:
    torch.manual_seed(0)
    x = signal(2, 30, 4)
    backbone = Backbone(MultiScaleSSM, 4, n_layers=2, norm="batch").double().eval()
    assert padding_error(backbone, x, 17) < OUTPUT[F64]

    class Leak(Backbone):
        def forward(self, x: Tensor, *rest: Any) -> Any:
            return super().forward(x, *rest) + x.mean(1, keepdim=True)

    leak = Leak(MultiScaleSSM, 4, n_layers=1).double().eval()
    assert padding_error(leak, x, 17, padding=3.0) > 0.1
    assert padding_error(leak, x, 17) == float("inf")


def test_calls_are_recorded_in_order_and_only_within() -> None:
    backbone = Backbone(MultiScaleSSM, 4, n_layers=2)
    x = torch.randn(1, 5, 4)
    with trace_calls(backbone, MultiScaleSSM) as calls:
        backbone(x)
    backbone(x)
    assert [call.path for call in calls] == ["blocks.0.layer", "blocks.1.layer"]
    assert calls[0].args[0] is x
    assert torch.equal(calls[1].output, calls[1].module(calls[1].args[0]))
