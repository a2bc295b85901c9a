"""`config.yaml` of a run: the resolved recipe, by which an interrupted run is recognised."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from tasks.run.provenance import atomic_file


class SavedConfig(SaveConfigCallback):
    """Writes config.yaml atomically: Lightning truncates the file first, and a kill then leaves it empty."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file, in the first process alone."""
        # Only the first process runs this: trainer.log_dir, a broadcast, would wait for the others forever.
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / self.config_filename) as file:
            file.write(self.parser.dump(self.config, skip_unset=False).encode())
