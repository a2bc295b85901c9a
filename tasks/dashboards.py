"""What TensorBoard shows beyond the task's own metrics, and a progress report for logs."""

import time
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from msssm import SequenceLayer
from msssm.scale_mixer import ScaleMixer
from msssm.ssm import NoSSM

LAYOUT = {
    "Training": {
        "Loss": ["Multiline", ["train/loss_step", "train/loss_epoch", "val/loss"]],
        "Accuracy": ["Multiline", ["train/accuracy", "val/accuracy"]],
        "Learning rate": ["Multiline", ["lr-AdamW/.*"]],
        "Gradient norm": ["Multiline", ["train/grad_norm"]],
        "Samples per second": ["Multiline", ["train/samples_per_second"]],
    },
    "Scales": {
        "Effective memory (steps), mean over layers": ["Multiline", ["memory/mean/.*"]],
        "Mixer weight, mean over layers": ["Multiline", ["mixer/mean/.*"]],
        "Mixer weight, spread over positions": ["Multiline", ["mixer/spread/.*"]],
    },
}


def band_name(band: int, bands: int) -> str:
    """`0_input`, `1_detail` .. , `4_approximation`: finest first."""
    if bands == 1:
        return "0_single"
    return f"{band}_" + ("input" if band == 0 else "approximation" if band == bands - 1 else "detail")


class Dashboard(Callback):
    """Samples per second; effective memory and mixer weights per band, at every validation.

    Layers are those with an `effective_memory` method and the `ScaleMixer`s; values are logged per band as the mean
    over layers, and per layer under `memory/layer_*`. Mixer weights are those of the first validation batch.
    """

    def __init__(self) -> None:
        self._samples, self._since = 0, 0.0
        self._mixer_outputs: list[Tensor] = []
        self._hooks: list[Any] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_custom_scalars(LAYOUT)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._samples, self._since = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += len(batch[0]) * trainer.world_size
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            now = time.monotonic()
            pl_module.log("train/samples_per_second", self._samples / (now - self._since), rank_zero_only=True)
            self._samples, self._since = 0, now

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mixer_outputs = []
        mixers = (m for m in pl_module.modules() if isinstance(m, ScaleMixer))
        self._hooks = [mixer.register_forward_hook(self._keep) for mixer in mixers]

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._mixer_outputs.append(output.detach())

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        layers = (m for m in pl_module.modules() if isinstance(m, SequenceLayer))
        with_memory = [m for m in layers if hasattr(m, "effective_memory") and not isinstance(m.ssm, NoSSM)]
        memories = [cast(Tensor, cast(Any, layer).effective_memory()) for layer in with_memory]
        for layer, memory in enumerate(memories):
            self._log_bands(pl_module, f"memory/layer_{layer:02d}", memory)
        if memories:
            self._log_bands(pl_module, "memory/mean", torch.stack(memories).mean(0))
        if self._mixer_outputs:
            weights = torch.stack([w.mean((0, 1, 3)) for w in self._mixer_outputs])
            spread = torch.stack([w.float().std((0, 1, 3)) for w in self._mixer_outputs])
            self._log_bands(pl_module, "mixer/mean", weights.mean(0))
            self._log_bands(pl_module, "mixer/spread", spread.mean(0))
            self._mixer_outputs = []

    def _log_bands(self, pl_module: pl.LightningModule, prefix: str, values: Tensor) -> None:
        for band, value in enumerate(values):
            name = f"{prefix}/{band_name(band, len(values))}"
            pl_module.log(name, value.to(pl_module.device), rank_zero_only=True)


class EpochLines(ProgressBar):
    """One line per epoch, for logs and for several runs on one terminal.

    Args:
        name: what stands in front of each line.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.name = name
        self._start = 0.0

    def disable(self) -> None:
        """Nothing is drawn between the lines."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or self._start == 0:
            return
        done, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        elapsed = time.monotonic() - self._start
        shown = ", ".join(
            f"{key} {trainer.callback_metrics[key]:.3f}"
            for key in ("train/loss_epoch", "val/loss", "val/accuracy")
            if key in trainer.callback_metrics
        )
        print(f"{self.name:<24} step {done:>6}/{total}  {shown}  {elapsed:.0f} s", flush=True)
