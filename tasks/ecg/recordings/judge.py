"""Calibration and thresholds of a trained model, from PTB-XL's validation fold; its scores on both held-out folds."""

from collections.abc import Sequence
from dataclasses import replace
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
    train = data.split("train")
    millivolts = (
        np.where(signal == MISSING, np.nan, signal / UNITS_PER_MILLIVOLT)
        for signal in (train.signals[row] for row in train.rows)
    )
    base = Answers(
        data.label_set,
        data.mean,
        data.std,
        data.sampling_rate,
        Windows(data.crop, data.stride, aggregation),
        [],
        data.generated,
        typical=typical_ranges(millivolts, data.sampling_rate),
    )
    held_out = [_logits(network, data, split, aggregation) for split in ("val", "test")]
    answers = judged_by(base, data.label_set, data.classes, held_out, MIN_POSITIVES)
    described = [replace(each, description=data.descriptions[each.name]) for each in answers.classes]
    return replace(answers, classes=described)


def judged_by(
    base: Answers,
    label_set: str,
    names: Sequence[str],
    held_out: Sequence[tuple[Floats, Floats]],
    min_positives: int,
    **changes: Any,
) -> Answers:
    """Fits calibration and thresholds on held-out labels and logits, and scores them on others.

    Args:
        base: What does not depend on the labels.
        label_set: Name of the labels' set.
        names: Names of the K labels.
        held_out: Labels and logits (n, K) of the validation part, then of the test part.
        min_positives: Positives in the validation part with which a label has a fit and a threshold of its own.
        changes: Further fields of the result.
    """
    (target, logit), (test_target, test_logit) = held_out
    positives = target.sum(axis=0).astype(int)
    rare = positives < min_positives
    fits = np.array([platt(y, z) for y, z in zip(target.T, logit.T, strict=True)])
    if rare.any():
        fits[rare] = platt(target[:, rare].ravel(), logit[:, rare].ravel())
    slope, intercept = fits.T
    probability, test_probability = (_sigmoid(slope * z + intercept) for z in (logit, test_logit))
    test_auroc = auroc(test_target, test_logit)
    classes = []
    for k, name in enumerate(names):
        threshold = None
        test: dict[str, float | None] = {"auroc": _number(test_auroc[k])}
        if not rare[k] and slope[k] > 0:
            threshold = best_f1_threshold(target[:, k], probability[:, k])
            test |= at_threshold(test_target[:, k], test_probability[:, k], threshold)
        fit = float(slope[k]), float(intercept[k])
        classes.append(ClassAnswer(name, name, int(positives[k]), *fit, threshold, test))
    return replace(
        base,
        label_set=label_set,
        classes=classes,
        validation=_scores(target, logit, probability),
        test=_scores(test_target, test_logit, test_probability),
        **changes,
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
