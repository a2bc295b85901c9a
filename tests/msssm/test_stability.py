"""No parameter makes a recurrence diverge, and what a layer says of its memory is so."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import msssm.fused
import msssm.ssm
from msssm import MultiScaleSSM
from msssm.baselines import S4D, Mamba
from msssm.scan.delta import full_rank, step_size
from msssm.scan.selective.operands import Operands
from tests.support.layers import BASELINES, LAYERS, MULTI_SCALE, D, build, signal, tensors
from tests.support.tolerances import OUTPUT, assert_near


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
    whole = msssm.fused.cpu.scan

    def spy_on_whole(operands: Operands, *rest: Any) -> Any:
        assert operands.delta_weight is not None
        assert operands.delta_bias is not None
        full = full_rank(operands.delta, operands.delta_weight)
        seen.append((step_size(full, operands.delta_bias).detach(), operands.A.detach()))
        return whole(operands, *rest)

    monkeypatch.setattr(msssm.fused, "cpu", SimpleNamespace(scan=spy_on_whole))
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
