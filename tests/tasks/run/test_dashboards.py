"""The live diagnostics of a training, hook by hook."""

from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from msssm import MultiScaleSSM
from msssm.ssm import S6
from tasks.run.dashboard import Dashboard
from tests.support.tolerances import GRADIENT


class _Network(pl.LightningModule):
    """Two layers, and what was logged."""

    def __init__(self, ssm: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(MultiScaleSSM(3, 1, 2, 4, ssm=ssm) for _ in range(2))  # type: ignore[arg-type]
        self.logged: dict[str, float] = {}

    def log(self, name: str, value: Any, **_: Any) -> None:  # type: ignore[override]
        self.logged[name] = float(value)


def _validate(network: _Network, *batches: tuple[Tensor, Tensor]) -> dict[str, float]:
    dashboard, trainer = Dashboard(), SimpleNamespace()
    dashboard.on_validation_start(trainer, network)  # type: ignore[arg-type]
    for index, (x, lengths) in enumerate(batches):
        batch = SimpleNamespace(lengths=lengths)
        dashboard.on_validation_batch_start(trainer, network, batch, index)  # type: ignore[arg-type]
        for layer in network.layers:
            layer(x, lengths)
        dashboard.on_validation_batch_end(trainer, network, None, batch, index)  # type: ignore[arg-type]
    dashboard.on_validation_epoch_end(trainer, network)  # type: ignore[arg-type]
    return network.logged


@pytest.mark.parametrize("ssm", ["s6", "s4"])
@torch.no_grad()
def test_the_stability_margin_is_of_the_true_steps_of_the_first_batch(ssm: str) -> None:
    """1 - |exp(Delta_t A)| written out. The padding, which is as a zero input, and a later batch of zeros have less."""
    network = _Network(ssm)
    ssms = [layer.ssm for layer in network.layers]
    for each in ssms:
        if isinstance(each, S6):  # step sizes grow with a positive input
            each.projection.weight.abs_()
            each.delta_weight.abs_()
    x, lengths = 1 + torch.rand(3, 9, 3), torch.tensor([9, 2, 5])
    logged = _validate(network, (x, lengths), (torch.zeros_like(x), lengths))
    margins, silent = [], []
    for each in ssms:
        for row, length in enumerate(lengths):
            for t in range(length):
                steps = each.delta(x[row : row + 1, t : t + 1]).reshape(3, 3, 1)
                margins.append(1 - torch.exp(steps * each.diagonal()).amax((1, 2)))
        silent.append(1 - torch.exp(each.delta().unsqueeze(-1) * each.diagonal()).amax((1, 2)))
    expected = torch.stack(margins).amin(0)
    names = ("0_input", "1_detail", "2_approximation")
    assert [logged[f"stability_margin/{name}"] for name in names] == pytest.approx(
        expected.tolist(), rel=GRADIENT[torch.float32]
    )
    if ssm == "s6":
        assert (torch.stack(silent).amin(0) < 0.9 * expected).all()


def test_layers_without_a_recurrence_have_no_margin() -> None:
    logged = _validate(_Network("none"), (torch.randn(2, 5, 3), torch.tensor([5, 4])))
    assert "mixer/mean/0_input" in logged
    assert not [name for name in logged if name.startswith("stability_margin")]
