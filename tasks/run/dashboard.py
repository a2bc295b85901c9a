"""TensorBoard values beyond the task's own metrics, and a progress report for logs."""

import time
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor, nn

from msssm import SequenceLayer
from msssm.diagnostics import largest_eigenvalue, mixer_report
from msssm.padding import position_mask
from msssm.scale_mixer import ScaleMixer
from msssm.ssm import S4, S6, NoSSM
from tasks.run.checkpoints import best_of


def layout(monitor: str) -> dict[str, dict[str, list[Any]]]:
    """Charts of a run for TensorBoard, one of them of the metric that selects it, such as "val/accuracy"."""
    metric = monitor.removeprefix("val/")
    title = "AUROC" if metric == "auroc" else metric.replace("_", " ").capitalize()
    return {
        "Training": {
            "Loss": ["Multiline", ["train/loss_step", "train/loss_epoch", "val/loss"]],
            title: ["Multiline", [f"train/{metric}$", f"val/{metric}$"]],  # regular expressions: no auroc_classes
            "Learning rate": ["Multiline", ["lr-AdamW/.*"]],
            "Gradient norm": ["Multiline", ["train/grad_norm"]],
            "Samples per second": ["Multiline", ["train/samples_per_second"]],
        },
        "Scales": {
            "Effective memory (steps), mean over layers": ["Multiline", ["memory/mean/.*"]],
            "Stability margin, least over layers: 1 - max |Abar|": ["Multiline", ["stability_margin/.*"]],
            "Mixer weight, mean over layers": ["Multiline", ["mixer/mean/.*"]],
            "Mixer weight, spread over positions": ["Multiline", ["mixer/spread/.*"]],
            "Mixer, bands in effect": ["Multiline", ["mixer/effective_bands/.*"]],
            "Mixer, layers that collapsed or are uniform": ["Multiline", ["mixer/alarm/.*"]],
        },
    }


def monitored(trainer: pl.Trainer) -> str:
    """Metric that selects the best checkpoint."""
    return str(getattr(best_of(trainer), "monitor", None) or "val/loss")


def band_name(band: int, bands: int) -> str:
    """Name of a band, finest first: `0_input`, `1_detail` .. , `4_approximation`."""
    if bands == 1:
        return "0_single"
    return f"{band}_" + ("input" if band == 0 else "approximation" if band == bands - 1 else "detail")


class Dashboard(Callback):
    """Logs samples per second, and at every validation effective memory, stability margin and mixer weights per band.

    Layers are those with an `effective_memory` method, and the `ScaleMixer`s; values are logged per band as the mean
    over layers, and per layer under `memory/layer_*`. Mixer weights are those of the first validation batch, with the
    number of bands in effect, and of layers whose mixer collapsed or is uniform (`msssm.diagnostics.mixer_report`).
    `stability_margin/*` is 1 - max |Abar| over layers, channels, modes and the steps of that batch, per band: the
    recurrences contract while it is above 0.
    """

    def __init__(self) -> None:
        """Starts without measurements."""
        self._samples, self._since = 0, 0.0
        self._mixer_outputs: list[Tensor] = []
        self._eigenvalues: list[Tensor] = []  # largest of each layer, (M,)
        self._lengths: Tensor | None = None
        self._hooks: list[Any] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the layout of the charts."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_custom_scalars(layout(monitored(trainer)))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restarts the clock."""
        self._samples, self._since = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs samples per second."""
        self._samples += extract_batch_size(batch) * trainer.world_size
        if self._samples and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            now = time.monotonic()
            pl_module.log("train/samples_per_second", self._samples / (now - self._since), rank_zero_only=True)
            self._samples, self._since = 0, now

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hooks mixers and state space models for the first batch."""
        self._mixer_outputs, self._eigenvalues = [], []
        keep = ((ScaleMixer, self._keep_output), (S6 | S4, self._keep_eigenvalue))
        self._hooks = [
            module.register_forward_hook(hook)
            for module in pl_module.modules()
            for kind, hook in keep
            if isinstance(module, kind)
        ]

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Notes the lengths of the first batch."""
        if self._hooks:
            self._lengths = getattr(batch, "lengths", None)

    def _keep_output(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._mixer_outputs.append(output.detach())

    def _keep_eigenvalue(self, module: S6 | S4, args: Any, output: Tensor) -> None:
        self._eigenvalues.append(largest_eigenvalue(module, self._true(args[0]).unsqueeze(0)))

    def _true(self, x: Tensor) -> Tensor:
        """Positions of x (B, L, ...) within the batch's lengths, (n, ...); all where it has other lengths or none."""
        lengths = self._lengths
        if lengths is None or len(lengths) != len(x) or lengths.max() > x.shape[1]:
            return x.flatten(0, 1)
        return x[position_mask(lengths, x.shape[1])]

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Removes the hooks after the first batch."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restarts the clock, so that validations do not count as training time."""
        self._samples, self._since = 0, time.monotonic()  # a validation is no training time

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs memory, stability margin and mixer weights of each band."""
        layers = (m for m in pl_module.modules() if isinstance(m, SequenceLayer))
        with_memory = [m for m in layers if hasattr(m, "effective_memory") and not isinstance(m.ssm, NoSSM)]
        memories = [cast(Tensor, cast(Any, layer).effective_memory()) for layer in with_memory]
        for layer, memory in enumerate(memories):
            self._log_bands(pl_module, f"memory/layer_{layer:02d}", memory)
        if memories:
            self._log_bands(pl_module, "memory/mean", torch.stack(memories).mean(0))
        if self._eigenvalues:
            self._log_bands(pl_module, "stability_margin", 1 - torch.stack(self._eigenvalues).amax(0))
        if self._mixer_outputs:
            weights = torch.stack([self._true(w).float() for w in self._mixer_outputs])  # (layers, positions, M, H)
            self._log_bands(pl_module, "mixer/mean", weights.mean((0, 1, 3)))
            self._log_bands(pl_module, "mixer/spread", weights.std((1, 3)).mean(0))
            reports = [mixer_report(each) for each in weights]
            effective = torch.tensor([report.effective_bands for report in reports])
            values = {
                "effective_bands/least": effective.min(),
                "effective_bands/mean": effective.mean(),
                "alarm/collapsed_layers": torch.tensor(sum(report.collapsed for report in reports)).float(),
                "alarm/uniform_layers": torch.tensor(sum(report.uniform for report in reports)).float(),
            }
            for name, value in values.items():
                pl_module.log(f"mixer/{name}", value.to(pl_module.device), rank_zero_only=True)
            self._mixer_outputs = []

    def _log_bands(self, pl_module: pl.LightningModule, prefix: str, values: Tensor) -> None:
        for band, value in enumerate(values):
            name = f"{prefix}/{band_name(band, len(values))}"
            pl_module.log(name, value.to(pl_module.device), rank_zero_only=True)


class EpochLines(ProgressBar):
    """Progress as a line at every validation and every half minute, for logs and for several runs on one terminal.

    Args:
        name: beginning of each line.
    """

    def __init__(self, name: str = "") -> None:
        """Starts the clock."""
        super().__init__()
        self.name = name
        self._start = self._printed = time.monotonic()

    def disable(self) -> None:
        """Does nothing: there is no bar to remove."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restarts the clock."""
        self._start = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints a line every half minute."""
        if time.monotonic() - self._printed > 30:
            self._print(trainer, ("train/loss_step",))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints a line."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._print(trainer, tuple(dict.fromkeys(("val/loss", monitored(trainer)))))

    def _print(self, trainer: pl.Trainer, keys: tuple[str, ...]) -> None:
        self._printed = time.monotonic()
        if not trainer.is_global_zero:
            return
        metrics = trainer.callback_metrics
        shown = "  ".join(f"{key} {metrics[key]:.3f}" for key in keys if key in metrics)
        done, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        print(f"{self.name:<36} step {done:>6}/{total}  {self._printed - self._start:5.0f} s  {shown}", flush=True)
