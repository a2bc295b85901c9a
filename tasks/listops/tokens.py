"""Classification of sequences of tokens."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from datamodules import Batch
from msssm import Backbone, SequenceClassifier
from msssm.classifier import Pooling
from msssm.errors import InputError
from tasks.base import SequenceTask
from tasks.run.predictions import FILE


class TokenTask(SequenceTask):
    """Embedding, backbone, pooling over the true positions, linear head; cross-entropy over classes.

    Logs `{train,val,test}/loss` and `{train,val,test}/accuracy`; accuracy is over samples, exact under DDP.

    Args:
        backbone: the stack of sequence layers.
        vocab_size: number of different tokens.
        num_classes: number of classes.
        pooling: what the head reads, "mean" or "last".
        lr: peak learning rate.
        weight_decay: of weights that are neither biases, norms nor SSM parameters.
        ssm_lr: peak learning rate of the state space models' A, step sizes and D; None for `lr`.
        warmup_epochs: length of the linear warm-up, in epochs.
    """

    def __init__(
        self,
        backbone: Backbone,
        vocab_size: int,
        num_classes: int,
        pooling: Pooling = "mean",
        lr: float = 3e-3,
        weight_decay: float = 0.03,
        ssm_lr: float | None = None,
        warmup_epochs: float = 1.0,
    ) -> None:
        """Builds the classifier. Raises ValueError for options out of their range."""
        super().__init__(lr, weight_decay, ssm_lr, warmup_epochs)
        self.save_hyperparameters()
        self.vocab_size, self.num_classes = vocab_size, num_classes
        self.model = SequenceClassifier(nn.Embedding(vocab_size, backbone.d_model), backbone, num_classes, pooling)
        accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.train_accuracy, self.val_accuracy = accuracy, accuracy.clone()
        self.test_accuracy = accuracy.clone()

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Maps token ids x (B, L), lengths (B,), to logits (B, num_classes)."""
        return self.model(x, lengths)

    def setup(self, stage: str) -> None:
        """Raises ValueError unless the data have the same vocabulary and classes."""
        data = getattr(self.trainer, "datamodule", None)
        for name in ("vocab_size", "num_classes"):
            wanted = getattr(data, name, None)
            if wanted not in (None, getattr(self, name)):
                raise InputError(
                    f"the data have {name}={wanted}, the task {name}={getattr(self, name)}: set --model.{name} {wanted}"
                )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss of a batch, and logs loss and accuracy."""
        loss, _ = self._step(batch, "train", self.train_accuracy)
        self.log_train_loss(loss, len(batch.y))
        return loss

    def on_train_epoch_end(self) -> None:
        """Logs loss and accuracy of the epoch."""
        super().on_train_epoch_end()
        self.log("train/accuracy", self.train_accuracy)

    def validation_metrics(self) -> dict[str, str]:
        """Metrics of a validation, each with its best value."""
        return {"val/loss": "min", "val/accuracy": "max"}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs loss and accuracy."""
        self._step(batch, "val", self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs loss and accuracy, and collects the answers."""
        _, logits = self._step(batch, "test", self.test_accuracy)
        assert batch.sample_index is not None
        self.test_predictions.update(batch.sample_index, batch.y, logits.argmax(-1))

    def _step(self, batch: Batch, stage: str, accuracy: Metric) -> tuple[Tensor, Tensor]:
        """The loss and the logits."""
        logits = self(batch.x, batch.lengths)
        loss = nn.functional.cross_entropy(logits, batch.y)
        self.check_loss(loss, batch.x, batch.lengths, stage=stage)
        accuracy.update(logits, batch.y)
        if stage != "train":
            options: dict[str, Any] = {"batch_size": len(batch.y), "prog_bar": True}
            self.log(f"{stage}/loss", loss, sync_dist=True, **options)
            self.log(f"{stage}/accuracy", accuracy, **options)
        return loss, logits

    def report(self, datamodule: LightningDataModule, run_dir: Path) -> dict[str, Any]:
        """Writes the test's answers to predictions.npz."""
        self.test_predictions.save(run_dir / FILE, "accuracy")
        return {}

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Predicts the answers (B,)."""
        return self(batch.x, batch.lengths).argmax(-1)

    def describe_predictions(self, outputs: list[Tensor]) -> list[str]:
        """Formats the answer to each sequence, in the order of the batches."""
        return [str(answer) for answer in torch.cat(outputs).tolist()]
