"""TensorBoard pictures of an image classifier at each validation: confusions, and its most confident errors."""

from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor

NUMBERED = 20  # most classes with room for a number in each cell


class _Errors(NamedTuple):
    """Wrong answers: images (n, C, H, W), and confidence, prediction and true class of each, (n,)."""

    image: Tensor
    confidence: Tensor
    prediction: Tensor
    target: Tensor


class ImageDashboard(Callback):
    """Draws the confusion matrix over all ranks, and the first rank's most confident errors.

    For a task with `val_confusion`, `image_shape` and a `validation_step` that returns logits. It holds at most
    `errors` images, and draws two figures per validation.

    Args:
        errors: images in the grid.
    """

    def __init__(self, errors: int = 16) -> None:
        """Starts without errors."""
        self.errors = errors
        self._worst: _Errors | None = None

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the errors of the last validation."""
        self._worst = None

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the most confident errors."""
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        confidence, prediction = outputs.detach().float().softmax(-1).max(-1)
        wrong = (prediction != batch.y).nonzero().squeeze(1)
        wrong = wrong[confidence[wrong].argsort(descending=True)[: self.errors]]
        images = as_images(batch.x[wrong], cast(Any, pl_module).image_shape)
        found = [images, confidence[wrong], prediction[wrong], batch.y[wrong]]
        if self._worst is not None:
            found = [torch.cat(pair) for pair in zip(self._worst, found, strict=True)]
        first = found[1].argsort(descending=True)[: self.errors]
        self._worst = _Errors(*(values[first] for values in found))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws both figures."""
        confusion = cast(Any, pl_module).val_confusion.compute()  # on every rank: it gathers
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("val/confusion", confusion_figure(confusion.cpu()), trainer.global_step)
                if self._worst is not None and len(self._worst.image):
                    figure = errors_figure(_Errors(*(values.cpu() for values in self._worst)))
                    logger.experiment.add_figure("val/confident_errors", figure, trainer.global_step)


def as_images(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Converts pixels (B, H W, C) in raster order to images (B, C, H, W), which are returned as they are."""
    if x.ndim == 4:
        return x
    return x.unflatten(1, shape[1:]).movedim(3, 1)


def confusion_figure(confusion: Tensor) -> Figure:
    """Draws the share of each true class (row) predicted as each class (column), with numbers if there is room."""
    share = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    classes = len(share)
    side = 6.0 if classes > NUMBERED else 2.4 + 0.42 * classes
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(share.numpy(), vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(picture, ax=axes, shrink=0.8)
    accuracy = confusion.diagonal().sum() / confusion.sum().clamp(min=1)
    axes.set(xlabel="predicted class", ylabel="true class", title=f"share of the true class; accuracy {accuracy:.1%}")
    if classes <= NUMBERED:
        axes.set_xticks(range(classes))
        axes.set_yticks(range(classes))
        for row in range(classes):
            for column in range(classes):
                if confusion[row, column]:
                    value = float(share[row, column])
                    color = "white" if value > 0.5 else "black"
                    axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=color, fontsize=8)
    return figure


def errors_figure(worst: _Errors) -> Figure:
    """Draws a grid of wrongly classified images with their answers; values are stretched per image."""
    columns = min(4, len(worst.image))
    rows = -(-len(worst.image) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.1 * rows))
    figure.subplots_adjust(0.02, 0.02, 0.98, 0.84 if rows == 1 else 0.92, 0.05, 0.35)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    shown = zip(grid[: len(worst.image)], *worst, strict=True)
    for axes, image, confidence, prediction, target in shown:
        low, high = image.min(), image.max()
        picture = ((image - low) / (high - low).clamp(min=1e-8)).movedim(0, 2)
        axes.imshow((picture.expand(-1, -1, 3) if picture.shape[2] == 1 else picture[..., :3]).numpy())
        axes.set_title(f"{target} called {prediction}\n{confidence:.0%} sure", fontsize=8)
    return figure
