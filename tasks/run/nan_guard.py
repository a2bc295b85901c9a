"""The guard against values that are not finite, as a callback of the trainer."""

from contextlib import ExitStack

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from msssm.diagnostics.nan_guard import nan_guard


class NanGuard(Callback):
    """Stops at the first value that is not finite, naming layer, band and step: `--trainer.callbacks+=tasks.NanGuard`.

    Raises:
        FloatingPointError: see `msssm.diagnostics.nan_guard.nan_guard`; the message adds the training step.
    """

    def __init__(self) -> None:
        """Starts inactive."""
        self._entered = ExitStack()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Enters the guard."""
        self._entered.close()
        self._entered.enter_context(nan_guard(pl_module))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leaves the guard."""
        self._entered.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leaves the guard, and adds the training step to its message."""
        self._entered.close()
        if isinstance(exception, FloatingPointError) and exception.args:
            exception.args = (f"training step {trainer.global_step}: {exception.args[0]}", *exception.args[1:])
