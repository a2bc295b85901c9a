"""PTB-XL: which statements a 12-lead ECG carries."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Callback, LightningDataModule
from torch import Tensor, nn

from datamodules.ptbxl import LABEL_SETS, LEADS, ECGBatch, PTBXLDataModule
from msssm import Backbone, SequenceClassifier
from msssm.errors import InputError
from tasks.base import SequenceTask
from tasks.ecg.recordings.inference import aggregate
from tasks.metrics.bootstrap import RESAMPLES, percentile_interval, resample
from tasks.metrics.ecg import auroc, f_max, macro, weighted_auroc
from tasks.metrics.predictions import Predictions
from tasks.run.predictions import FILE


class ECGTask(SequenceTask):
    """Linear encoder, backbone, mean over time, linear head; binary cross-entropy over the classes of a label set.

    Logs `{train,val,test}/loss`, and of validation and test `/auroc`, the macro AUROC (unbinned, over the classes that
    have both positives and negatives), `/auroc_classes`, how many these are, and `/f_max`. All are over records, exact
    under DDP. A record of several windows is scored by what they say together.

    Args:
        backbone: the stack of sequence layers.
        label_set: Label set of the data: all (71 classes), diagnostic (44), subdiagnostic (23), superdiagnostic (5),
            form (19), rhythm (12). A recipe has `${data.init_args.label_set}`.
        lr: peak learning rate.
        weight_decay: of weights that are neither biases, norms nor SSM parameters.
        ssm_lr: peak learning rate of the state space models' A, step sizes and D; `lr` when absent.
        warmup_epochs: length of the linear warm-up, in epochs.
        aggregation: "mean" or "max" of the probabilities of a record's windows, where the data are cropped.
    """

    def __init__(
        self,
        backbone: Backbone,
        label_set: str = "all",
        lr: float = 4.5e-3,
        weight_decay: float = 0.06,
        ssm_lr: float | None = None,
        warmup_epochs: float = 5.0,
        aggregation: Literal["mean", "max"] = "mean",
    ) -> None:
        """Builds the classifier. Raises ValueError for options out of their range."""
        super().__init__(lr, weight_decay, ssm_lr, warmup_epochs)
        if label_set not in LABEL_SETS or aggregation not in ("mean", "max"):
            raise InputError(
                f"asked for label_set={label_set!r}, aggregation={aggregation!r}; choose one of "
                f"{', '.join(LABEL_SETS)}, and 'mean' or 'max'"
            )
        self.save_hyperparameters()
        self.label_set, self.aggregation = label_set, aggregation
        self.model = SequenceClassifier(nn.Linear(len(LEADS), backbone.d_model), backbone, LABEL_SETS[label_set])
        self.val_predictions = Predictions()
        self.classes: list[str] = []

    def setup(self, stage: str) -> None:
        """Takes the names of the classes from the data.

        Raises:
            ValueError: they are not those of the label set.
        """
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, PTBXLDataModule):
            if len(datamodule.classes) != LABEL_SETS[self.label_set]:
                raise InputError(
                    f"the model's label_set {self.label_set!r} has {LABEL_SETS[self.label_set]} classes, the data's "
                    f"{datamodule.label_set!r} has {len(datamodule.classes)}; give both the same: "
                    "--model.label_set '${data.init_args.label_set}'"
                )
            self.classes = datamodule.classes

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Maps standardised leads x (B, L, 12), lengths (B,), to logits (B, K)."""
        return self.model(x, lengths)

    def training_step(self, batch: ECGBatch, batch_idx: int) -> Tensor:
        """Returns the loss of a batch, and logs it."""
        loss, _ = self._step(batch, "train")
        self.log_train_loss(loss, len(batch.y))
        return loss

    def validation_metrics(self) -> dict[str, str]:
        """Metrics of a validation, each with its best value."""
        return {"val/loss": "min", "val/auroc": "max", "val/auroc_classes": "max", "val/f_max": "max"}

    def validation_step(self, batch: ECGBatch, batch_idx: int) -> None:
        """Logs the loss, and collects the logits."""
        _, logits = self._step(batch, "val")
        self.val_predictions.update(batch.sample_index, batch.y, logits)

    def test_step(self, batch: ECGBatch, batch_idx: int) -> None:
        """Logs the loss, and collects the logits."""
        _, logits = self._step(batch, "test")
        self.test_predictions.update(batch.sample_index, batch.y, logits)

    def _step(self, batch: ECGBatch, stage: str) -> tuple[Tensor, Tensor]:
        """The loss and the logits of the records."""
        # Windows have no padding, and attention without lengths needs no mask.
        logits = aggregate(self(batch.x).float().unflatten(0, (len(batch.y), -1)), self.aggregation)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.y)
        self.check_loss(loss, batch.x, batch.lengths, stage=stage)
        if stage != "train":
            self.log(f"{stage}/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch.y))
        return loss, logits

    def on_validation_epoch_start(self) -> None:
        """Empties the predictions."""
        self.val_predictions.reset()

    def on_validation_epoch_end(self) -> None:
        """Logs the scores over all records."""
        self._log_scores("val", self.val_predictions)

    def on_test_epoch_end(self) -> None:
        """Logs the scores over all records."""
        super().on_test_epoch_end()
        self._log_scores("test", self.test_predictions)

    def _log_scores(self, stage: str, predictions: Predictions) -> None:
        target, logits = (tensor.cpu().numpy() for tensor in predictions.compute()[1:])
        per_class = auroc(target, logits)
        scores = {
            "auroc": macro(per_class),
            "auroc_classes": np.isfinite(per_class).sum(),
            "f_max": f_max(target, logits),
        }
        for name, value in scores.items():  # the same on every rank
            self.log(f"{stage}/{name}", float(value), prog_bar=name == "auroc", rank_zero_only=False)

    def configure_callbacks(self) -> list[Callback]:
        """Adds the ECG dashboard."""
        from tasks.ecg.dashboard import ECGDashboard

        return [ECGDashboard()]

    def report(self, datamodule: LightningDataModule, run_dir: Path) -> dict[str, Any]:
        """Computes test scores with 95 % bootstrap intervals over records and patients, and writes predictions.npz."""
        assert isinstance(datamodule, PTBXLDataModule)
        records = datamodule.records("test")
        sample, target, logits = (tensor.cpu().numpy() for tensor in self.test_predictions.compute())
        patients = records["patient_id"].to_numpy(dtype=np.int64)[sample]
        self.test_predictions.save(run_dir / FILE, "macro_auroc", patients)
        per_class = auroc(target, logits)
        names = datamodule.classes
        intervals = {}
        for unit, group in (("records", None), ("patients", patients)):
            values = weighted_auroc(target, logits, resample(len(sample), group=group))
            lost = np.isnan(values[np.isfinite(per_class)]).any(axis=0).sum()
            intervals[unit] = {
                "auroc": percentile_interval(macro(values)),
                "resamples": RESAMPLES,
                "resamples_that_lost_a_class": int(lost),
            }
        return {
            "label_set": self.label_set,
            "auroc": float(macro(per_class)),
            "interval_95": intervals,
            "auroc_classes": int(np.isfinite(per_class).sum()),
            "classes": len(names),
            "f_max": f_max(target, logits),
            "auroc_per_class": {n: float(v) for n, v in zip(names, per_class, strict=True) if np.isfinite(v)},
            "positives": dict(zip(names, target.sum(axis=0).astype(int).tolist(), strict=True)),
            "records": len(sample),
            "patients": len(np.unique(patients)),
            "windows_per_record": len(datamodule.starts),
        }
