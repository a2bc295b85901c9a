"""Predictions for every test sample, as they are stored beside the run's metrics."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from msssm.errors import InputError, MissingFileError

FILE = "predictions.npz"

Score = Literal["accuracy", "macro_auroc"]


class Saved(NamedTuple):
    """Content of a predictions.npz: arrays as of `tasks.metrics.predictions`, metric, and groups of samples, if any."""

    sample: npt.NDArray[np.int64]
    target: npt.NDArray[np.generic]
    prediction: npt.NDArray[np.generic]
    metric: str
    group: npt.NDArray[np.int64] | None


def load(path: Path) -> Saved:
    """Reads a file that `tasks.metrics.predictions.Predictions.save` wrote.

    Raises:
        ValueError: the file is damaged or of another kind.
    """
    if not path.is_file():
        raise MissingFileError(
            f"expected predictions in {path}, got no such file; a complete run of msssm fit writes it"
        )
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
            metric = str(arrays.pop("metric"))
            saved = Saved(metric=metric, group=arrays.pop("group", None), **arrays)
    except Exception as error:  # zipfile and numpy raise almost anything on a damaged archive
        raise InputError(f"{path} cannot be read as predictions ({error}); run the training again") from error
    return saved
