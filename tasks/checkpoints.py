"""Checkpoints of a run folder: which one to go on from, also after a damage or a move."""

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from tasks.checkpoint_io import DamagedCheckpointError, read_checkpoint
from tasks.messages import say


class RunCheckpoint(ModelCheckpoint):
    """Lightning's, but what it remembers of the best checkpoint survives a move of the run folder."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        moved: dict[str, Any] = {
            key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")
        }
        moved["best_k_models"] = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "dirpath": self.dirpath})


def newest_readable(run_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The readable checkpoint of a run folder with the most steps, and its content; says which ones are damaged.

    Besides `checkpoints/` these are the `hpc_ckpt_*.ckpt` that Lightning writes when SLURM announces a requeue.

    Raises:
        CheckpointFormatError: if one of them is of another version's format; it is not damaged, so it is not passed
            over.
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
            rank_zero_only(say)(f"{path} cannot be read ({type(error.__cause__).__name__}), going on without it")
        else:
            if newest is None or checkpoint["global_step"] > newest[1]["global_step"]:
                newest = path, checkpoint
    return newest
