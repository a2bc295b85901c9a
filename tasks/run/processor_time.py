"""Processor time of a training, which does not depend on what else the machine does."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


class ProcessorTime(Callback):
    """Seconds that all threads of this process computed while training, including validations.

    Loader workers and other ranks are not included. A resumed run continues to count from its checkpoint.
    """

    def __init__(self) -> None:
        """Starts at 0 seconds."""
        self._before = 0.0
        self._start: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + (0.0 if self._start is None else time.process_time() - self._start)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts to count."""
        self._start = time.process_time()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops counting."""
        self._before, self._start = self.seconds, None

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the seconds before the checkpoint."""
        self._before = state_dict["seconds"]
