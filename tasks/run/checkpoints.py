"""Checkpoints of a run folder: the best one, and the one to resume from, even after damage or a move."""

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from tasks.messages import say
from tasks.run.checkpoint_io import DamagedCheckpointError, read_checkpoint


class RunFolderCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, but its state belongs to the run folder and moves with it.

    A run that resumes from another folder's checkpoint starts without a best checkpoint: the other folder keeps its
    own.
    """

    _same_run = True

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes whether the checkpoint comes from this run's folder."""
        folders = [Path(str(folder)).resolve() for folder in (trainer.default_root_dir, self.dirpath)]
        loaded = Path(str(trainer.ckpt_path)).resolve()
        self._same_run = any(loaded.is_relative_to(folder) for folder in folders)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state of the same run, with paths in the present folder."""
        if not self._same_run:
            return

        def here(path: str) -> str:
            return os.path.join(str(self.dirpath), os.path.relpath(path, state_dict["dirpath"])) if path else path

        moved: dict[str, Any] = {
            key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")
        }
        moved["best_k_models"] = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "dirpath": self.dirpath})


class RunCheckpoint(RunFolderCheckpoint):
    """Keeper of best.ckpt, the best validation so far.

    With another `save_top_k` than 1 or another `filename`, the kept checkpoints have their own names, each with its
    step, and best.ckpt is a copy of the best.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives further checkpoints names with their step."""
        super().setup(trainer, pl_module, stage)
        self.save_last = None  # LastCheckpoint's
        name = self.filename or ""
        if (self.save_top_k != 1 or name != "best") and "{step" not in name:
            self.filename = "-".join(filter(None, [name, "{step}"]))

    @property
    def best_path(self) -> str:
        """Path of best.ckpt."""
        return os.path.join(str(self.dirpath), "best.ckpt")

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if filepath == self.best_model_path != self.best_path:
            super()._save_checkpoint(trainer, self.best_path)


def best_of(trainer: pl.Trainer) -> RunCheckpoint | None:
    """The callback that keeps best.ckpt, among the checkpoint callbacks of a recipe."""
    return next((each for each in trainer.checkpoint_callbacks if isinstance(each, RunCheckpoint)), None)


def newest_readable(run_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """Finds a run's readable checkpoint with the most steps, and its content; reports damaged ones.

    Candidates are those in `checkpoints/`, and the `hpc_ckpt_*.ckpt` that Lightning writes when SLURM announces a
    requeue; not those of weights alone (`checkpoint.save_weights_only`), from which nothing can resume.

    Raises:
        CheckpointFormatError: one has another version's format; it is not damaged, and therefore not skipped.
    """
    names = ("last", "last.previous", "best", "best.previous")
    paths = [run_dir / "checkpoints" / f"{name}.ckpt" for name in names] + sorted(run_dir.glob("hpc_ckpt_*.ckpt"))
    newest = None
    for path in paths:
        if not path.exists():
            continue
        try:
            checkpoint = read_checkpoint(path)
        except DamagedCheckpointError as error:
            rank_zero_only(say)(f"{path} cannot be read ({type(error.__cause__).__name__}); continuing without it")
        else:
            resumable = "optimizer_states" in checkpoint
            if resumable and (newest is None or checkpoint["global_step"] > newest[1]["global_step"]):
                newest = path, checkpoint
    return newest
