"""What metrics.json says of the data of a run, whoever wrote the data module."""

import hashlib
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._pytree import tree_leaves

from msssm.errors import InputError

LOADERS = {"train": "train_dataloader", "val": "val_dataloader", "test": "test_dataloader"}


def describe(datamodule: LightningDataModule) -> dict[str, Any]:
    """Counts of the samples, and a digest of the data: the module's own, or of what its loaders give.

    Without a `describe` of its own, the counts are those of the loaders' datasets, and the digest is the sha256 of the
    validation and test batches; those of the training may be augmented at random.

    Raises:
        InputError: a loader has no dataset with a length.
    """
    own = getattr(datamodule, "describe", None)
    if own is not None:
        found: dict[str, Any] = own()
        return found
    counts, digest = {}, hashlib.sha256()
    for name, method in LOADERS.items():
        loader = getattr(datamodule, method)()
        try:
            counts[name] = len(loader.dataset)
        except (AttributeError, TypeError) as error:
            raise InputError(
                f"{type(datamodule).__name__}.{method}() must give one DataLoader over a dataset with a length, got "
                f"{type(loader).__name__} ({error}); or define describe() with counts and digest"
            ) from error
        if name != "train":
            for leaf in (leaf for batch in loader for leaf in tree_leaves(batch)):
                array = leaf.numpy(force=True) if isinstance(leaf, Tensor) else np.asarray(leaf)
                digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return {"counts": counts, "digest": digest.hexdigest()}


class DataRecord(Callback):
    """Describes data of others before the first step, so that nothing is found missing after the last."""

    def __init__(self) -> None:
        """Starts without a description."""
        self.found: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describes the data that cannot do it themselves."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero and not hasattr(datamodule, "describe"):
            datamodule.setup("test")
            self.found = describe(datamodule)
