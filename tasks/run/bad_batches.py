"""Harmful batches: skipped and counted on request; and spikes of the loss, which are always counted."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from msssm.errors import InputError
from tasks.messages import say


class SkipBadBatches(Callback):
    """Skips optimiser steps whose gradients are not finite: `--trainer.callbacks+=tasks.SkipBadBatches`.

    Weights, optimiser and buffers stay as before the batch; the learning rate advances. All processes skip together,
    since their gradients are averaged. Logs the count as `train/skipped_batches`. For precisions without a gradient
    scaler, which skips by itself.

    Args:
        limit: number of skipped steps that the training tolerates.
    """

    def __init__(self, limit: int = 10) -> None:
        """Starts the count. Raises ValueError for a limit below 1."""
        if limit < 1:
            raise InputError(f"limit must be at least 1, got {limit}")
        self.limit, self.skipped = limit, 0
        self._buffers: list[Tensor] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Tells the task not to end at a loss that is not finite."""
        pl_module.stops_at_bad_loss = False  # type: ignore[assignment]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Copies the buffers before the first batch of a step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._buffers = [buffer.clone() for buffer in pl_module.buffers()]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Drops gradients that are not finite. Raises ValueError beyond the limit."""
        parameters = [p for p in pl_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not torch.isfinite(norm):
            self.skipped += 1
            message = (
                f"the gradients of step {trainer.global_step} are not finite: batch skipped, {self.skipped} so far"
            )
            if self.skipped > self.limit:
                raise InputError(
                    f"{message}, more than limit={self.limit}; look at the data, or try a lower lr or ssm_lr"
                )
            if trainer.is_global_zero:
                say(message)
            for parameter in parameters:
                parameter.grad = None
            with torch.no_grad():
                for buffer, before in zip(pl_module.buffers(), self._buffers, strict=True):
                    buffer.copy_(before)
        pl_module.log("train/skipped_batches", float(self.skipped))

    def state_dict(self) -> dict[str, Any]:
        """Number of skipped steps."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the number of skipped steps."""
        self.skipped = state_dict["skipped"]
