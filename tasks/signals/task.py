"""Classification, labelling and regression of one's own sequences, whole or step by step."""

from pathlib import Path
from typing import Any, cast, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torchmetrics import Metric

from datamodules import ArrayDataModule, Batch
from datamodules.arrays.source import Target
from msssm import Backbone, SequenceClassifier
from msssm.errors import InputError
from msssm.padding import mask_padding, position_mask
from tasks.base import SequenceTask
from tasks.run.predictions import FILE, Score
from tasks.signals.metrics import BEST, metrics
from tasks.signals.standardize import Restore, Standardize

_SAVED: dict[Target, Score] = {"class": "accuracy", "labels": "macro_auroc"}


class SignalTask(SequenceTask):
    """Standardisation, linear encoder, backbone, mean over the true positions, linear head; no mean for "step".

    Logs `{train,val,test}/loss`, and of validation and test, over all samples and exact under DDP:

    | target | loss | metrics |
    |---|---|---|
    | class | cross-entropy | `/accuracy`, `/macro_f1` |
    | labels | binary cross-entropy | `/auroc`, the mean over the labels with positives and negatives |
    | regression | mean squared error of standardised values | `/mae` and `/r2`, in the unit of the values |
    | step | cross-entropy over the true steps | `/accuracy` of the true steps |

    Mean and scale of the channels and of a regression's values are taken from `ArrayDataModule` when a training starts,
    and are part of the network: a checkpoint predicts new files as they are.

    Args:
        backbone: the stack of sequence layers.
        channels: C of the sequences.
        outputs: classes, or columns of labels or values.
        target: "class", "labels", "regression" or "step"; a recipe has `${data.init_args.target}`.
        lr: peak learning rate.
        weight_decay: of weights that are neither biases, norms nor SSM parameters.
        ssm_lr: peak learning rate of the state space models' A, step sizes and D; None for `lr`.
        warmup_epochs: length of the linear warm-up, in epochs.
    """

    def __init__(
        self,
        backbone: Backbone,
        channels: int,
        outputs: int,
        target: Target = "class",
        lr: float = 3e-3,
        weight_decay: float = 0.03,
        ssm_lr: float | None = None,
        warmup_epochs: float = 1.0,
    ) -> None:
        """Builds the network. Raises ValueError for options out of their range."""
        super().__init__(lr, weight_decay, ssm_lr, warmup_epochs)
        if channels < 1 or outputs < (1 if target == "regression" else 2) or target not in get_args(Target):
            raise InputError(
                f"asked for channels={channels}, outputs={outputs}, target={target!r}; give at least 1 channel, 2 "
                f"outputs, or 1 for regression, and one of {', '.join(get_args(Target))}"
            )
        self.save_hyperparameters()
        self.channels, self.outputs, self.target = channels, outputs, target
        self.names = [str(number) for number in range(outputs)]
        encoder = nn.Sequential(Standardize(channels), nn.Linear(channels, backbone.d_model))
        self.model = SequenceClassifier(encoder, backbone, outputs)
        if target == "regression":
            self.model.head = nn.Sequential(self.model.head, Restore(outputs))
        self.val_metrics, self.test_metrics = metrics(target, outputs), metrics(target, outputs)

    def setup(self, stage: str) -> None:
        """Checks the data against the network, and takes the constants of a training from them.

        Raises:
            ValueError: channels, outputs or target differ.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ArrayDataModule):
            return
        wanted = {"target": data.target, "channels": data.channels, "outputs": data.outputs}
        checked = ("channels",) if stage == "predict" else tuple(wanted)
        if wrong := [name for name in checked if wanted[name] != getattr(self, name)]:
            theirs, ours = (", ".join(f"{n}={v[n]}" for n in wrong) for v in (wanted, vars(self)))
            options = " ".join(f"--model.{name} {wanted[name]}" for name in wrong)
            raise InputError(f"the data have {theirs}, the task {ours}: set {options}")
        if stage == "fit":
            self.names = data.names
            self._standardize.take(torch.from_numpy(data.mean), torch.from_numpy(data.scale))
            if self.target == "regression":
                self._restore.take(torch.from_numpy(data.target_mean), torch.from_numpy(data.target_scale))

    @property
    def _standardize(self) -> Standardize:
        return cast(Standardize, cast(nn.Sequential, self.model.encoder)[0])

    @property
    def _restore(self) -> Restore:
        return cast(Restore, cast(nn.Sequential, self.model.head)[1])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the names of the outputs."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["names"] = self.names

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the names of the outputs. Raises InputError where the data have others."""
        super().on_load_checkpoint(checkpoint)
        self.names = checkpoint["names"]
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, ArrayDataModule) and data.names not in ([], self.names):
            raise InputError(
                f"the checkpoint is for {', '.join(self.names)}, the data have {', '.join(data.names)}; give data with "
                "the same classes or columns"
            )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Maps sequences x (B, L, C), lengths (B,), to logits or values (B, K), for "step" to logits (B, L, K)."""
        if self.target != "step":
            return self.model(x, lengths)
        encoded = self.model.encoder(mask_padding(x, lengths))  # NaN would reach the gradient of its weights
        return self.model.head(self.model.backbone(encoded, lengths))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss of a batch, and logs it."""
        loss, _, count = self._step(batch, "train")
        self.log_train_loss(loss, count)
        return loss

    def validation_metrics(self) -> dict[str, str]:
        """Metrics of a validation, each with its best value."""
        return {"val/loss": "min", **{f"val/{name}": best for name, best in BEST[self.target].items()}}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs loss and metrics."""
        self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs loss and metrics, and collects what `msssm compare` reads."""
        output = self._evaluate(batch, "test", self.test_metrics)
        if self.target in _SAVED:
            assert batch.sample_index is not None
            prediction = output.argmax(-1) if self.target == "class" else output
            self.test_predictions.update(batch.sample_index, batch.y, prediction)

    def _step(self, batch: Batch, stage: str) -> tuple[Tensor, Tensor, int]:
        """The loss, the output (B, ...) or of the true steps (n, K), and the number of samples or steps."""
        output = self(batch.x, batch.lengths).float()
        target = batch.y
        if self.target == "step":
            true = position_mask(batch.lengths, batch.x.shape[1])
            output, target = output[true], target[true]
        if self.target == "labels":
            loss = nn.functional.binary_cross_entropy_with_logits(output, target)
        elif self.target == "regression":
            loss = (((output - target) / self._restore.scale) ** 2).mean()
        else:
            loss = nn.functional.cross_entropy(output, target)
        self.check_loss(loss, batch.x, batch.lengths, stage=stage)
        return loss, output, len(target)

    def _evaluate(self, batch: Batch, stage: str, measured: nn.ModuleDict) -> Tensor:
        loss, output, count = self._step(batch, stage)
        target = batch.y
        if self.target == "step":
            target = target[position_mask(batch.lengths, batch.x.shape[1])]
        elif self.target == "labels":
            target = target.long()
        self.log(f"{stage}/loss", loss, sync_dist=True, batch_size=count, prog_bar=True)
        for name, module in measured.items():
            metric = cast(Metric, module)
            metric.update(output, target)
            self.log(f"{stage}/{name}", metric, batch_size=count, prog_bar=True)
        return output

    def report(self, datamodule: LightningDataModule, run_dir: Path) -> dict[str, Any]:
        """Names the outputs, and writes the test's answers to predictions.npz, for classes and labels."""
        if self.target in _SAVED:
            groups = datamodule.groups("test") if isinstance(datamodule, ArrayDataModule) else None
            self.test_predictions.save(run_dir / FILE, _SAVED[self.target], groups)
        return {"target": self.target, "names": self.names}

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Predicts classes (B,), probabilities (B, K), values (B, K), or classes (B, L) with -1 in the padding."""
        output = self(batch.x, batch.lengths).float()
        if self.target == "labels":
            return output.sigmoid()
        if self.target == "regression":
            return output
        answers = output.argmax(-1)
        if self.target == "step":
            answers = answers.masked_fill(~position_mask(batch.lengths, batch.x.shape[1]), -1)
        return answers

    def describe_predictions(self, outputs: list[Tensor]) -> list[str]:
        """Formats a line per sequence: class, labels with probabilities, values, or the classes of the steps."""
        rows = [row for batch in outputs for row in batch.tolist()]
        if self.target == "class":
            return [self.names[row] for row in rows]
        if self.target == "step":
            return [" ".join(str(answer) for answer in row if answer >= 0) for row in rows]
        return ["  ".join(f"{name} {value:.4g}" for name, value in zip(self.names, row, strict=True)) for row in rows]
