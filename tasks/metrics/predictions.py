"""Predictions for every test sample, gathered over all processes."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from msssm.errors import InputError
from tasks.run.predictions import Score
from tasks.run.provenance import atomic_file


class Predictions(Metric):
    """Metric that collects samples with targets and predictions, over all ranks of a distributed test.

    `compute()` is collective: call it on every rank, as `SequenceTask` does at the end of a test. Its result is kept
    until the next `update` or `reset`, so that one rank can then read or `save` it alone.
    """

    full_state_update = False
    sample: list[Tensor]
    target: list[Tensor]
    prediction: list[Tensor]

    def __init__(self) -> None:
        """Starts empty."""
        super().__init__()
        for name in ("sample", "target", "prediction"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, sample: Tensor, target: Tensor, prediction: Tensor) -> None:
        """Adds n samples.

        Args:
            sample: (n,) int64 row of each sample in its split.
            target: (n,) classes, or (n, K) multi-hot labels.
            prediction: (n,) classes, or (n, K) logits.
        """
        self.sample.append(sample.detach())
        self.target.append(target.detach())
        self.prediction.append(prediction.detach())

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sample, target and prediction over all ranks, in ascending order of the sample.

        Raises:
            ValueError: a sample occurs more than once.
        """
        sample, order = dim_zero_cat(self.sample).sort()
        if (repeated := sample[1:][sample.diff() == 0]).numel():
            raise InputError(
                f"expected every sample once, got {len(repeated)} more than once, {repeated[0].item()} for one; leave "
                "--trainer.use_distributed_sampler at false"
            )
        return sample, dim_zero_cat(self.target)[order], dim_zero_cat(self.prediction)[order]

    def save(self, path: Path, metric: Score, group: npt.NDArray[np.int64] | None = None) -> None:
        """Writes the result of `compute()` atomically.

        Args:
            path: an .npz file, for `tasks.run.predictions.load`.
            metric: by which predictions are compared.
            group: (n,) of each sample in ascending order, for example its patient; samples of a group are dependent.
        """
        sample, target, prediction = (tensor.cpu() for tensor in self.compute())
        arrays: dict[str, Any] = {"sample": sample.numpy(), "target": target.numpy(), "prediction": prediction.numpy()}
        if group is not None:
            arrays["group"] = group
        with atomic_file(path) as file:
            np.savez_compressed(file, metric=np.array(metric), **arrays)
