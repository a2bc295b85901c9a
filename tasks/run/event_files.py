"""TensorBoard's event files, kept consistent with the checkpoints: a resumed run shows every step once."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

_PATTERN = "events.out.tfevents.*"


class EventFiles(Callback):
    """Stores the length of the event files in each checkpoint, so that `rewind` can cut off what came later."""

    def __init__(self, folder: Path) -> None:
        """Watches a folder."""
        self.folder = folder
        self._loggers: list[TensorBoardLogger] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Finds the TensorBoard loggers."""
        if trainer.is_global_zero:
            self._loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Flushes the events of the last step."""
        # The last step's values are logged after its checkpoint, if there was one; a killed process keeps no buffers.
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._flush()

    def state_dict(self) -> dict[str, Any]:
        """Length of each event file, in bytes."""
        self._flush()
        return {"bytes": {path.name: path.stat().st_size for path in self.folder.glob(_PATTERN)}}

    def _flush(self) -> None:
        for logger in self._loggers:
            logger.experiment.flush()


@rank_zero_only
def rewind(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Truncates the event files of `folder` to their length when `checkpoint` was written."""
    sizes = checkpoint.get("callbacks", {}).get(EventFiles.__qualname__, {}).get("bytes", {})
    for path in folder.glob(_PATTERN):
        size = sizes.get(path.name, 0)
        if size == 0:
            path.unlink()
        elif size < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(size)
