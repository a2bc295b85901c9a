"""What every task shares: the optimiser, its schedule, the norm of the gradients, and the predictions of a test."""

import math
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from msssm import param_groups
from tasks.predictions import Predictions


def warmup_cosine(step: int, warmup_steps: float, total_steps: float) -> float:
    """Factor of the learning rate: linear from 0 to 1 over the warm-up, then a half cosine to 0 at `total_steps`."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class SequenceTask(lightning.LightningModule):
    """AdamW over `msssm.param_groups`, with linear warm-up and a cosine to 0, per step.

    A subclass whose `test_step` gives `self.test_predictions` every sample finds them all there in `report`.

    Args:
        lr: peak learning rate.
        weight_decay: of weights that are neither biases, norms nor SSM parameters.
        ssm_lr: peak learning rate of A, the step sizes and D of the state space models; `lr` when absent.
        warmup_epochs: length of the warm-up, in epochs.
    """

    def __init__(self, lr: float, weight_decay: float, ssm_lr: float | None, warmup_epochs: float) -> None:
        super().__init__()
        errors = [
            f"{name} must be {wanted}, got {value}"
            for name, value, wanted, good in (
                ("lr", lr, "positive", lr > 0),
                ("weight_decay", weight_decay, "at least 0", weight_decay >= 0),
                ("ssm_lr", ssm_lr, "positive", ssm_lr is None or ssm_lr > 0),
                ("warmup_epochs", warmup_epochs, "at least 0", warmup_epochs >= 0),
            )
            if not good
        ]
        if errors:
            raise ValueError("; ".join(errors))
        self._random_states: dict[str, Any] | None = None
        self.lr, self.weight_decay, self.ssm_lr, self.warmup_epochs = lr, weight_decay, ssm_lr, warmup_epochs
        self.test_predictions = Predictions()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(param_groups(self, self.lr, self.weight_decay, self.ssm_lr))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate_factor(self, step: int) -> float:
        # Asked for step 0 before the training data is there. Asking the trainer for its number of steps would load
        # the data before a checkpoint is restored, and the loader's position in it would be lost.
        if step == 0:
            return warmup_cosine(0, self.warmup_epochs, math.inf)
        per_epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        return warmup_cosine(step, self.warmup_epochs * per_epoch, self.trainer.estimated_stepping_batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_states"] = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._random_states = checkpoint.get("random_states")

    def on_train_start(self) -> None:
        # A resumed run draws the same dropout masks as an uninterrupted one. A checkpoint holds one process' states.
        if self._random_states is not None and self.trainer.world_size == 1:
            torch.set_rng_state(self._random_states["cpu"].cpu())
            torch.cuda.set_rng_state_all([state.cpu() for state in self._random_states["cuda"]])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Before clipping, and only where the logger will keep it.
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/grad_norm", torch.nn.utils.get_total_norm(gradients))

    def describe_predictions(self, outputs: list[Tensor]) -> list[str]:
        """One line per predicted sample, from what `predict_step` returned for each batch."""
        raise NotImplementedError

    def on_test_start(self) -> None:
        self.test_predictions.reset()

    def on_test_epoch_end(self) -> None:
        if self.test_predictions.update_called:
            self.test_predictions.compute()  # on every rank: it gathers

    def report(self, datamodule: lightning.LightningDataModule, run_dir: Path) -> dict[str, Any]:
        """What a run records of its test beyond the logged metrics: "report" in metrics.json, and files in `run_dir`.

        Called once after the test of a training, on the first rank alone, with `test_predictions` gathered.
        """
        return {}
