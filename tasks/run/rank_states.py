"""The part of a checkpoint that each process has for itself: its random numbers, and its share of `train_*` metrics."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torchmetrics import Metric


def gather_states(module: LightningModule) -> list[dict[str, Any]]:
    """State of every process, by rank; a collective operation."""
    mine = {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(module.device) if module.device.type == "cuda" else None,
        "metrics": {name: _metric_state(metric) for name, metric in _metrics(module).items() if metric.update_called},
    }
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, mine)
    return states


def restore_state(module: LightningModule, state: dict[str, Any]) -> None:
    """Restores one result of `gather_states` in this process."""
    torch.set_rng_state(state["cpu"].cpu())
    if state["cuda"] is not None and module.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), module.device)
    metrics = _metrics(module)
    for name, values in state["metrics"].items():
        metrics[name].persistent(True)
        metrics[name].load_state_dict(values)
        metrics[name].persistent(False)
        metrics[name].to(module.device)
        metrics[name]._update_count = 1  # not in the state; at 0, the metric would warn that it is empty


def _metrics(module: LightningModule) -> dict[str, Metric]:
    # Metrics of an evaluation restart with it, and still contain the last one when a checkpoint is written.
    children = ((name, child) for name, child in module.named_modules() if name.startswith("train_"))
    return {name: child for name, child in children if isinstance(child, Metric)}


def _metric_state(metric: Metric) -> dict[str, Any]:
    metric.persistent(True)
    state = {
        name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in metric.state_dict().items()
    }
    metric.persistent(False)
    return state
