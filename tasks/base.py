"""The base of all tasks: optimiser and schedule, checks of loss and weights, resuming, predictions of a test."""

import math
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import MeanMetric

from msssm import param_groups
from msssm.diagnostics.nan_guard import nan_guard
from msssm.errors import InputError
from tasks.metrics.predictions import Predictions
from tasks.run.rank_states import gather_states, restore_state
from tasks.run.weights import check_weights


def warmup_cosine(step: int, warmup_steps: float, total_steps: float) -> float:
    """Factor of the learning rate: linear from 0 to 1 over the warm-up, then a half cosine to 0 at `total_steps`."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class SequenceTask(lightning.LightningModule):
    """AdamW over `msssm.param_groups`, with linear warm-up and a cosine to 0, per step.

    A subclass whose `test_step` passes every sample to `self.test_predictions` finds all of them there in `report`.

    Args:
        lr: peak learning rate.
        weight_decay: of weights that are neither biases, norms nor SSM parameters.
        ssm_lr: peak learning rate of A, the step sizes and D of the state space models; None for `lr`.
        warmup_epochs: length of the warm-up, in epochs.
    """

    stops_at_bad_loss = True  # False with `SkipBadBatches`, which skips the step instead

    def __init__(self, lr: float, weight_decay: float, ssm_lr: float | None, warmup_epochs: float) -> None:
        """Checks the options. Raises ValueError for one out of its range."""
        super().__init__()
        for name, value, wanted, good in (
            ("lr", lr, "positive", lr > 0),
            ("weight_decay", weight_decay, "at least 0", weight_decay >= 0),
            ("ssm_lr", ssm_lr, "positive", ssm_lr is None or ssm_lr > 0),
            ("warmup_epochs", warmup_epochs, "at least 0", warmup_epochs >= 0),
        ):
            if not good:
                raise InputError(f"{name} must be {wanted}, got {value}")
        self._rank_states: list[dict[str, Any]] = []
        self.lr, self.weight_decay, self.ssm_lr, self.warmup_epochs = lr, weight_decay, ssm_lr, warmup_epochs
        self.train_loss = MeanMetric(nan_strategy="ignore")
        self.test_predictions = Predictions()

    def validation_metrics(self) -> dict[str, str]:
        """Names of the metrics that a validation logs, each with its best value, "min" or "max"."""
        return {}

    def configure_optimizers(self) -> Any:
        """AdamW, with its schedule per step."""
        groups = param_groups(self, self.lr, self.weight_decay, self.ssm_lr)
        if all(p.device.type == "cpu" and p.is_floating_point() for p in self.parameters()):
            # Five times as fast as a loop over the parameters. As an option of the groups, because Lightning does not
            # clip the gradients of an optimiser that could unscale them by itself.
            groups = [group | {"fused": True} for group in groups]
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate_factor(self, step: int) -> float:
        # Called for step 0 before the training data is loaded. The trainer's number of steps would load the data before
        # a checkpoint is restored, and the loader's position in it would be lost.
        if step == 0:
            return warmup_cosine(0, self.warmup_epochs, math.inf)
        return warmup_cosine(step, self._steps(self.warmup_epochs), self._all_steps())

    def _steps(self, epochs: float) -> float:
        """Optimiser steps of the first epochs, where a callback may accumulate more batches in later ones."""
        batches, scheduler = self.trainer.num_training_batches, self._accumulation()
        if scheduler is None:
            return epochs * batches / self.trainer.accumulate_grad_batches
        of_epoch = [math.ceil(batches / scheduler.get_accumulate_grad_batches(e)) for e in range(math.ceil(epochs))]
        whole = int(epochs)
        return sum(of_epoch[:whole]) + (epochs - whole) * sum(of_epoch[whole:])

    def _all_steps(self) -> float:
        """Optimiser steps of the whole training, as they are known when it starts."""
        epochs, most = self.trainer.max_epochs, self.trainer.max_steps
        if self._accumulation() is None or epochs is None or epochs < 0:
            return self.trainer.estimated_stepping_batches
        return self._steps(epochs) if most < 0 else min(self._steps(epochs), most)

    def _accumulation(self) -> GradientAccumulationScheduler | None:
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        return next((each for each in callbacks if isinstance(each, GradientAccumulationScheduler)), None)

    def check_loss(self, loss: Tensor, *inputs: Tensor, stage: str = "train") -> None:
        """Ends training, validation or test at a loss that is not finite, with what `nan_guard` finds on `inputs`.

        Args:
            loss: Loss of a batch, a scalar.
            inputs: what the forward had.
            stage: "train", "val" or "test". Only the first is left to `SkipBadBatches`, where that is at work.

        Raises:
            ValueError: naming the step and, if the network itself fails, layer, band and position.
        """
        if torch.isfinite(loss) or (stage == "train" and not self.stops_at_bad_loss):
            return
        place = "every sequence layer is finite; try a lower lr or ssm_lr, and look at head and labels"
        try:
            with torch.no_grad(), nan_guard(self):
                self(*inputs)
        except FloatingPointError as error:
            place = str(error)
        last = Path(self.trainer.default_root_dir) / "checkpoints/last.ckpt"
        kept = f"; {last} is from before" if last.exists() and stage != "test" else ""
        name = {"train": "training", "val": "validation", "test": "test"}[stage]
        raise InputError(f"the {name} loss is {loss.item()} at step {self.global_step}: {place}{kept}")

    def log_train_loss(self, loss: Tensor, samples: int) -> None:
        """Logs `train/loss_step`, and `train/loss_epoch` when the epoch ends."""
        self.log("train/loss_step", loss, prog_bar=True, batch_size=samples)
        self.train_loss.update(loss.detach(), samples)

    def on_train_epoch_end(self) -> None:
        """Logs the mean training loss of the epoch."""
        # As an object, so that its state is in checkpoints; and here, after a checkpoint at the end of an epoch.
        self.log("train/loss_epoch", self.train_loss)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the processes' states. Raises InputError if a weight is not finite."""
        bad = [name for name, value in checkpoint["state_dict"].items() if not torch.isfinite(value).all()]
        if bad:
            raise InputError(
                f"{bad[0]} is not finite at step {self.global_step} ({len(bad)} of the weights); not saved, the "
                "checkpoint before is kept. Try a lower lr or ssm_lr"
            )
        # A task that was built in Python has its network among its arguments; a checkpoint holds plain values.
        options = checkpoint.get("hyper_parameters", {})
        checkpoint["hyper_parameters"] = {name: x for name, x in options.items() if not isinstance(x, torch.nn.Module)}
        checkpoint["rank_states"] = gather_states(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the weights fit, and keeps the processes' states for `on_train_start`."""
        source = self.trainer.ckpt_path if self._trainer is not None else None
        check_weights(self, checkpoint, source or "the checkpoint")
        self._rank_states = checkpoint.get("rank_states", [])
        # With averaged weights (Lightning's WeightAveraging), "state_dict" has the averages, which were validated. Its
        # callback would always replace them by the raw weights: right to resume training, wrong to test it.
        training = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if "current_model_state" in checkpoint and not training:
            checkpoint["current_model_state"] = checkpoint["state_dict"]

    def on_train_start(self) -> None:
        """Restores the random numbers and training metrics of a resumed run."""
        # So that a resumed run draws the same dropout masks as an uninterrupted one, and averages over the whole epoch.
        if len(self._rank_states) == self.trainer.world_size:
            restore_state(self, self._rank_states[self.global_rank])
        self._rank_states = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs the norm of the gradients before clipping, at the steps that the logger keeps."""
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if interval and (self.trainer.global_step + 1) % interval == 0:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/grad_norm", torch.nn.utils.get_total_norm(gradients))

    def describe_predictions(self, outputs: list[Tensor]) -> list[str]:
        """Formats one line per predicted sample, from the results of `predict_step` for all batches."""
        raise NotImplementedError

    def on_test_start(self) -> None:
        """Empties the predictions."""
        self.test_predictions.reset()

    def on_test_epoch_end(self) -> None:
        """Gathers the predictions of all processes."""
        if self.test_predictions.update_called:
            self.test_predictions.compute()  # on every rank: it gathers

    def report(self, datamodule: lightning.LightningDataModule, run_dir: Path) -> dict[str, Any]:
        """Returns the "report" of metrics.json, beyond the logged metrics, and writes files into `run_dir`.

        Called once after the test of a training, on the first rank alone, with `test_predictions` gathered.
        """
        return {}
