"""The optimiser of a task."""

import pytest
import torch
from torch import nn

from tasks.base import SequenceTask
from tests.support.tolerances import STEP, assert_near


def _task(network: nn.Module) -> SequenceTask:
    task = SequenceTask(lr=0.1, weight_decay=0.01, ssm_lr=None, warmup_epochs=0)
    task.network = network
    return task


def _three_steps(task: SequenceTask, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for p in task.parameters():
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in task.parameters()])


def test_steps_on_a_cpu_are_fused_and_those_of_adamw() -> None:
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        task = _task(nn.Linear(3, 4))
        optimizer = task.configure_optimizers()["optimizer"]
        for group in optimizer.param_groups:
            assert group["fused"] is True
            group["fused"] = fused
        results.append(_three_steps(task, optimizer))
    torch.manual_seed(0)
    assert (results[0] - torch.cat([p.detach().flatten() for p in nn.Linear(3, 4).parameters()])).abs().min() > 0
    assert_near(*results, STEP[torch.float32])


@pytest.mark.parametrize("network", [nn.Linear(2, 2, dtype=torch.complex64), nn.Linear(2, 2, device="meta")])
def test_other_parameters_are_stepped_one_by_one(network: nn.Module) -> None:
    optimizer = _task(network).configure_optimizers()["optimizer"]
    assert not any(group["fused"] for group in optimizer.param_groups)
