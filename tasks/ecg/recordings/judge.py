"""Calibration and thresholds of a trained model, from PTB-XL's validation fold; its scores on both held-out folds."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from datamodules import PTBXLDataModule
from datamodules.ptbxl.record import MISSING, UNITS_PER_MILLIVOLT
from datamodules.ptbxl.typical import typical_ranges
from tasks.ecg.calibration import at_threshold, best_f1_threshold, brier, calibration_error, platt
from tasks.ecg.recordings.inference import Windows, aggregate
from tasks.ecg.recordings.model import Answers, ClassAnswer
from tasks.metrics.ecg import auroc, macro

# Records of the validation fold with which a class has a calibration and a threshold of its own; the best F1 of fewer
# records does not last on the test fold.
MIN_POSITIVES = 20

Floats = npt.NDArray[np.float64]


def judge(network: nn.Module, data: PTBXLDataModule, aggregation: str) -> Answers:
    """Judges a network on the validation and test folds of data that are set up.

    A class with fewer than `MIN_POSITIVES` records in the validation fold shares the calibration of all such classes,
    and has no threshold; nor has a class whose logits say nothing.
    """
    target, logit = _logits(network, data, "val", aggregation)
    test_target, test_logit = _logits(network, data, "test", aggregation)
    positives = target.sum(axis=0).astype(int)
    rare = positives < MIN_POSITIVES
    fits = np.array([platt(y, z) for y, z in zip(target.T, logit.T, strict=True)])
    if rare.any():
        fits[rare] = platt(target[:, rare].ravel(), logit[:, rare].ravel())
    slope, intercept = fits.T
    probability, test_probability = (_sigmoid(slope * z + intercept) for z in (logit, test_logit))
    test_auroc = auroc(test_target, test_logit)
    classes = []
    for k, name in enumerate(data.classes):
        threshold = None
        test: dict[str, float | None] = {"auroc": _number(test_auroc[k])}
        if not rare[k] and slope[k] > 0:
            threshold = best_f1_threshold(target[:, k], probability[:, k])
            test |= at_threshold(test_target[:, k], test_probability[:, k], threshold)
        fit = float(slope[k]), float(intercept[k])
        classes.append(ClassAnswer(name, data.descriptions[name], int(positives[k]), *fit, threshold, test))
    train = data.split("train")
    millivolts = (
        np.where(signal == MISSING, np.nan, signal / UNITS_PER_MILLIVOLT)
        for signal in (train.signals[row] for row in train.rows)
    )
    return Answers(
        data.label_set,
        data.mean,
        data.std,
        data.sampling_rate,
        Windows(data.crop, data.stride, aggregation),
        classes,
        data.generated,
        _scores(target, logit, probability),
        _scores(test_target, test_logit, test_probability),
        typical_ranges(millivolts, data.sampling_rate),
    )


@torch.inference_mode()
def _logits(network: nn.Module, data: PTBXLDataModule, split: str, aggregation: str) -> tuple[Floats, Floats]:
    """Labels and logits (records, K) of a split."""
    target, logit = [], []
    for batch in data.val_dataloader() if split == "val" else data.test_dataloader():
        target.append(batch.y)
        logit.append(aggregate(network(batch.x).float().unflatten(0, (len(batch.y), -1)), aggregation))
    return torch.cat(target).double().numpy(), torch.cat(logit).double().numpy()


def _scores(target: Floats, logit: Floats, probability: Floats) -> dict[str, Any]:
    """Of all classes together; `brier` and `calibration_error` before and after the calibration."""
    per_class = auroc(target, logit)
    before_and_after = (_sigmoid(logit), probability)
    return {
        "records": len(target),
        "auroc": _number(macro(per_class)),
        "auroc_classes": int(np.isfinite(per_class).sum()),
        "brier": [brier(target, p) for p in before_and_after],
        "calibration_error": [calibration_error(target, p) for p in before_and_after],
    }


def _sigmoid(logit: Floats) -> Floats:
    return 1 / (1 + np.exp(-logit))


def _number(value: Any) -> float | None:
    """A float, or None for NaN, for which JSON has no form."""
    return float(value) if np.isfinite(value) else None
