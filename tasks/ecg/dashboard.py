"""TensorBoard values and pictures of an ECG training, beyond the metrics that select it."""

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure
from torch import Tensor, nn

from datamodules.ptbxl import LEADS, ECGBatch
from msssm.diagnostics import trace_calls
from msssm.scale_mixer import ScaleMixer
from tasks.ecg import plots
from tasks.metrics.ecg import auroc
from tasks.run.dashboard import band_name

EXAMPLES = 4  # records
BEATS = 3.0  # s of mixer weights, from the middle of a record


class ECGDashboard(Callback):
    """AUROC per class at every validation; pictures a few times per training, evenly over its steps.

    Pictures: ROC curves, calibration, four records with true and predicted classes, confusion of rhythms, and the
    mixer weights along some heartbeats of the first record. One more pass over one record is all they cost the model.

    Args:
        pictures: how many times.
    """

    def __init__(self, pictures: int = 5) -> None:
        """Starts without a batch."""
        self.pictures, self._drawn = pictures, 0
        self._examples: ECGBatch | None = None

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: ECGBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps records of the first batch as examples."""
        if batch_idx == 0:
            windows = len(batch.x) // len(batch.y)
            first = batch.x[: EXAMPLES * windows : windows]
            self._examples = ECGBatch(
                first, batch.y[:EXAMPLES], batch.lengths[: len(first)], batch.sample_index[:EXAMPLES]
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Logs AUROC per class and, if due, the pictures."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
            return
        sample, target, logits = (tensor.cpu().numpy() for tensor in pl_module.val_predictions.compute())
        names = pl_module.classes or [str(k) for k in range(target.shape[1])]
        scores = {
            f"val_auroc/{n}": float(a) for n, a in zip(names, auroc(target, logits), strict=True) if np.isfinite(a)
        }
        for logger in trainer.loggers:
            logger.log_metrics(scores, trainer.global_step)
        due = int(self.pictures * trainer.global_step / trainer.estimated_stepping_batches)
        writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if due > self._drawn and writers and self._examples is not None:
            self._drawn = due
            probability = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -50, 50)))
            figures = self._draw(trainer, pl_module, self._examples, names, sample, target, probability)
            for name, figure in figures.items():
                for writer in writers:
                    writer.add_figure(f"ecg/{name}", figure, trainer.global_step)

    def _draw(
        self, trainer: pl.Trainer, task: Any, examples: ECGBatch, names: list[str], sample: Any, target: Any, p: Any
    ) -> dict[str, Figure]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        rows = np.searchsorted(sample, examples.sample_index.cpu().numpy())
        lead = examples.x[..., LEADS.index("II")].cpu().numpy() * data.std + data.mean
        figures = {
            "roc": plots.roc_figure(names, target, p),
            "calibration": plots.calibration_figure(target, p),
            "examples": plots.examples_figure(lead, data.sampling_rate, names, target[rows], p[rows]),
        }
        if task.label_set == "rhythm":
            figures["confusion"] = plots.confusion_figure(names, target, p)
        if weights := _mixer_weights(task, examples.x[:1]):
            mixed = torch.stack(weights).float().mean(-1)[:, 0].cpu().numpy()  # (layers, L, M)
            bands = [band_name(band, mixed.shape[2]) for band in range(mixed.shape[2])]
            width = min(lead.shape[1], int(BEATS * data.sampling_rate))
            start = (lead.shape[1] - width) // 2
            span = slice(start, start + width)
            figures["mixer"] = plots.mixer_figure(
                lead[0, span], data.sampling_rate, mixed[:, span], bands, start / data.sampling_rate
            )
        if data.generated:
            for figure in figures.values():
                figure.suptitle("synthetic ECGs", fontsize="small")
        return figures


def _mixer_weights(task: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs (1, L, M, H) of every scale mixer for one record (1, L, 12); empty for a model without mixers."""
    with trace_calls(task, ScaleMixer) as calls:
        if any(isinstance(module, ScaleMixer) for module in task.modules()):
            task(x)
    return [call.output.detach() for call in calls]
