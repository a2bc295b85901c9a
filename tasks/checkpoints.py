"""Checkpoints of a run folder: which one to go on from, also after a damage or a move."""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint


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


def newest_readable(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of some checkpoints that exists and can be read; says which ones it passed over."""
    for path in (folder / name for name in names):
        if not path.exists():
            continue
        try:
            torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # whatever a damaged file makes the unpickler raise
            print(f"msssm: {path} cannot be read ({type(error).__name__}), going on without it", file=sys.stderr)
        else:
            return path
    return None
