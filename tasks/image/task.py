"""Classification of images as sequences of pixels (sequential CIFAR, digits) or of patches (ImageNet)."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from datamodules import Batch
from msssm import PatchEmbedding, SequenceClassifier, SequenceLayer
from msssm.classifier import Pooling
from msssm.errors import InputError
from msssm.image import ScanOrder
from tasks.base import SequenceTask
from tasks.image.dashboard import ImageDashboard
from tasks.run.predictions import FILE

# Larger confusion matrices are left out of the report; they can be computed from predictions.npz.
LARGEST_CONFUSION = 100


class ImageTask(SequenceTask):
    """Patches or pixels, backbone, pooling, linear head; cross-entropy over classes or soft labels.

    Logs `{train,val,test}/loss`, `{train,val,test}/accuracy` and, with more than 5 classes, `{val,test}/accuracy_top5`:
    over samples, exact under DDP. A soft label (Mixup) counts as its largest class in `train/accuracy`. Images have no
    padding, so that the lengths of a batch are not used.

    Args:
        backbone: the stack of sequence layers, `msssm.Backbone` or `msssm.timm.ViT`.
        image_size: H = W, pixels.
        patch_size: side of a patch, pixels; 1 is a sequence of pixels.
        in_channels: colours of a pixel.
        num_classes: outputs of the head.
        scan_order: "raster" or "snake", see `msssm.PatchEmbedding`.
        pooling: "mean" over the positions (the paper's), or the "last".
        position_embedding: learned, added to the patches.
        label_smoothing: Label smoothing of the training loss, in [0, 1).
        lr: peak learning rate.
        weight_decay: of weights that are neither biases, norms nor SSM parameters.
        ssm_lr: peak learning rate of the state space models' A, step sizes and D; None for `lr`.
        warmup_epochs: length of the linear warm-up, in epochs.
        base_batch_size: batch size for which the learning rates are given: they are scaled in proportion to the samples
            of one optimiser step (Goyal et al. 2017); None for no scaling.
    """

    def __init__(
        self,
        backbone: SequenceLayer,
        image_size: int = 32,
        patch_size: int = 1,
        in_channels: int = 3,
        num_classes: int = 10,
        scan_order: ScanOrder = "raster",
        pooling: Pooling = "mean",
        position_embedding: bool = False,
        label_smoothing: float = 0.0,
        lr: float = 4.5e-3,
        weight_decay: float = 0.01,
        ssm_lr: float | None = None,
        warmup_epochs: float = 1.0,
        base_batch_size: int | None = None,
    ) -> None:
        """Builds the classifier. Raises ValueError for options out of their range."""
        super().__init__(lr, weight_decay, ssm_lr, warmup_epochs)
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        if num_classes < 2:
            raise InputError(f"num_classes must be at least 2, got {num_classes}")
        if base_batch_size is not None and base_batch_size < 1:
            raise InputError(f"base_batch_size must be at least 1, got {base_batch_size}")
        self.save_hyperparameters()
        embedding = PatchEmbedding(
            image_size, patch_size, in_channels, backbone.d_model, scan_order, position_embedding
        )
        self.model = SequenceClassifier(embedding, backbone, num_classes, pooling)
        self.image_shape, self.num_classes = (in_channels, image_size, image_size), num_classes
        self.label_smoothing, self.base_batch_size = label_smoothing, base_batch_size
        self.train_metrics = MetricCollection(
            {"accuracy": MulticlassAccuracy(num_classes, average="micro")}, prefix="train/"
        )
        evaluation = {"accuracy": MulticlassAccuracy(num_classes, average="micro")}
        if num_classes > 5:
            evaluation["accuracy_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
        # Each with its own state: top-1 and top-5 may agree on a first batch.
        self.val_metrics = MetricCollection(dict(evaluation), prefix="val/", compute_groups=False)
        self.test_metrics = self.val_metrics.clone(prefix="test/")
        self.val_confusion = MulticlassConfusionMatrix(num_classes)
        self.test_confusion = MulticlassConfusionMatrix(num_classes)
        self._images, self._seconds, self._since = 0, 0.0, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Maps images x (B, C, H, W), or pixels (B, H W, C) in raster order, to logits (B, num_classes)."""
        return self.model(x)

    def setup(self, stage: str) -> None:
        """Raises ValueError unless the data have as many classes."""
        classes = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)
        if classes not in (None, self.num_classes):
            raise InputError(
                f"the data have {classes} classes, the task num_classes={self.num_classes}: "
                f"set --model.num_classes {classes}"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError unless the checkpoint has as many classes."""
        head = checkpoint.get("state_dict", {}).get("model.head.bias")
        if head is not None and len(head) != self.num_classes:
            raise InputError(
                f"the checkpoint has {len(head)} classes, the task num_classes={self.num_classes}: "
                f"set --model.num_classes {len(head)}, or train again"
            )
        super().on_load_checkpoint(checkpoint)

    def configure_callbacks(self) -> list[Callback]:
        """Adds the image dashboard, unless it is there."""
        # Called again at the test of a training, which has its dashboard.
        present = any(isinstance(callback, ImageDashboard) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [] if present else [ImageDashboard()]

    def _rate_factor(self, step: int) -> float:
        factor = super()._rate_factor(step)
        if self.base_batch_size is None:
            return factor
        batch = self.trainer.datamodule.batch_size * self.trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        return factor * batch / self.base_batch_size

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the loss of a batch, and logs loss and accuracy."""
        loss, logits = self._loss(batch, "train", self.label_smoothing)
        self.log_train_loss(loss, len(batch.y))
        # A soft label counts as its largest class.
        self.train_metrics.update(logits, batch.y if batch.y.ndim == 1 else batch.y.argmax(-1))
        return loss

    def on_train_epoch_end(self) -> None:
        """Logs loss and accuracy of the epoch."""
        super().on_train_epoch_end()
        self.log_dict(self.train_metrics)

    def validation_metrics(self) -> dict[str, str]:
        """Metrics of a validation, each with its best value."""
        return {"val/loss": "min", **{str(name): "max" for name in self.val_metrics}}

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logs the metrics, and returns the logits (B, num_classes) for the dashboard."""
        _, logits = self._loss(batch, "val")
        self._log_metrics(self.val_metrics, logits, batch)
        self.val_confusion.update(logits, batch.y)
        return logits

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the metrics, and collects the predicted classes."""
        _, logits = self._loss(batch, "test")
        self._log_metrics(self.test_metrics, logits, batch)
        self.test_confusion.update(logits, batch.y)
        if batch.sample_index is not None:
            self.test_predictions.update(batch.sample_index, batch.y, logits.argmax(-1))

    def _loss(self, batch: Batch, stage: str, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """The loss, logged, and the logits."""
        logits = self(batch.x)
        loss = nn.functional.cross_entropy(logits, batch.y, label_smoothing=label_smoothing)
        self.check_loss(loss, batch.x, stage=stage)
        if stage != "train":
            self.log(f"{stage}/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch.y))
        return loss, logits

    def _log_metrics(self, metrics: MetricCollection, logits: Tensor, batch: Batch) -> None:
        metrics.update(logits, batch.y)
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch.y))

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Predicts the classes (B,)."""
        return self(batch.x).argmax(-1)

    def describe_predictions(self, outputs: list[Tensor]) -> list[str]:
        """Formats the class of each image, in the order of the batches."""
        return [str(answer) for answer in torch.cat(outputs).tolist()]

    def on_validation_epoch_start(self) -> None:
        """Resets the confusion matrix."""
        self.val_confusion.reset()

    def on_test_start(self) -> None:
        """Resets the confusion matrix and the predictions."""
        super().on_test_start()
        self.test_confusion.reset()

    def on_test_epoch_end(self) -> None:
        """Gathers the predictions and the confusion matrix of all processes."""
        super().on_test_epoch_end()
        self.test_confusion.compute()  # on every rank: it gathers

    # Training throughput: loading included, validations and their checkpoints not.
    def on_train_epoch_start(self) -> None:
        """Starts the clock of the training throughput."""
        self._since = time.monotonic()

    def on_validation_end(self) -> None:
        """Restarts the clock, so that validations do not count."""
        self._since = time.monotonic()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Counts images and seconds."""
        now = time.monotonic()
        self._images += len(batch.y) * self.trainer.world_size
        self._seconds += now - self._since
        self._since = now

    def report(self, datamodule: LightningDataModule, run_dir: Path) -> dict[str, Any]:
        """Reports accuracy per class, confusion matrix (rows: the true class), size and speed.

        Writes predictions.npz.
        """
        if self.test_predictions.update_called:
            self.test_predictions.save(run_dir / FILE, "accuracy")
        confusion = self.test_confusion.compute().cpu()
        counts = confusion.sum(1).tolist()
        right = confusion.diagonal().tolist()
        top5 = self.trainer.callback_metrics.get("test/accuracy_top5")
        return {
            "accuracy_per_class": [r / n if n else None for r, n in zip(right, counts, strict=True)],
            "accuracy_top5": None if top5 is None else top5.item(),
            "confusion": confusion.tolist() if self.num_classes <= LARGEST_CONFUSION else None,
            "train_images_per_second": self._images / self._seconds if self._seconds else None,
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }
