"""Sections of an ECG model's card: use, data, calibration and thresholds."""

from tasks.ecg.calibration import BINS
from tasks.ecg.paper import RESEARCH
from tasks.ecg.recordings.judge import MIN_POSITIVES
from tasks.ecg.recordings.model import Answers
from tasks.reports.markdown import table

_PTBXL = (
    "PTB-XL (Wagner et al. 2020, https://doi.org/10.1038/s41597-020-0495-6; PhysioNet, CC BY 4.0): folds 1 to 8 "
    "for training, 9 for validation, 10 for the test. SCP codes, folds and patients as published; likelihoods are not "
    "used, unless the recipe sets data.likelihood."
)
_SYNTHETIC = "Generated ECGs in PTB-XL's format, of no patient: this model is for tests of the software alone."


def ecg_sections(answers: Answers) -> list[str]:
    """Returns the lines of the sections, each of which ends with an empty one."""
    windows = answers.windows
    seen = "whole"
    if windows.crop is not None:
        seen = f"in windows of {windows.crop / answers.sampling_rate:g} s ({windows.aggregation} of the probabilities)"
    folds = [["fold", "records", "macro AUROC", "classes", "Brier score", "calibration error"]]
    for fold, scores in (("9", answers.validation), ("10", answers.test)):
        before_and_after = (" -> ".join(f"{x:.4f}" for x in scores[name]) for name in ("brier", "calibration_error"))
        counts = (f"{scores['records']:,}", _rounded(scores["auroc"]), str(scores["auroc_classes"]))
        folds.append([fold, *counts, *before_and_after])
    at_threshold = ("sensitivity", "specificity", "precision")
    classes = [["class", "in fold 9", "AUROC", "threshold", *at_threshold]]
    for each in answers.classes:
        numbers = (each.test["auroc"], each.threshold, *map(each.test.get, at_threshold))
        classes.append([each.name, str(each.positives), *map(_rounded, numbers)])
    return [
        "## Intended use",
        "",
        f"Research on ECG classification, and a start for fine-tuning. {RESEARCH} PTB-XL has recordings of adults in "
        "Germany of 1989 to 1996, from one maker's devices; calibration and thresholds hold elsewhere only if a check "
        "says so.",
        "",
        f"Input: 12 leads at rest in mV, resampled to {answers.sampling_rate} Hz, read {seen}. "
        "`msssm ecg recording.hea --model path/to/this/folder`.",
        "",
        "## Data",
        "",
        _SYNTHETIC if answers.synthetic else _PTBXL,
        "",
        "## Calibration and thresholds",
        "",
        "Each class's probability is sigmoid(slope * logit + intercept), fitted on fold 9 (Platt 1999), and its "
        f"threshold has the best F1 there. Classes with fewer than {MIN_POSITIVES} records in fold 9 share one fit and "
        f"have no threshold. Brier score and calibration error ({BINS} bins of equal width) are over all records and "
        "classes, uncalibrated -> calibrated.",
        "",
        *table(folds),
        "",
        "By class, on fold 10:",
        "",
        *table(classes),
        "",
    ]


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
