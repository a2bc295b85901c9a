"""Plots of an ECG model: ROC curves, calibration, records, confusion of rhythms, mixer weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from tasks.metrics.ecg import auroc

Array = npt.NDArray[Any]
CURVES = 12  # more lines than this cannot be told apart


def roc_figure(names: Sequence[str], target: Array, probability: Array) -> Figure:
    """ROC curves of the classes with the most positives, worst first; target and probability (n, K)."""
    area = auroc(target, probability)
    frequent = [int(k) for k in np.argsort(-target.sum(axis=0), kind="stable") if np.isfinite(area[k])][:CURVES]
    figure, axes = _figure(6, 5)
    axes.set_prop_cycle(color=list(colormaps["tab20"](range(CURVES))))
    for k in sorted(frequent, key=lambda k: area[k]):
        alarm, hit, _ = roc_curve(target[:, k], probability[:, k])
        axes.plot(alarm, hit, label=f"{names[k]} {area[k]:.3f} ({int(target[:, k].sum())})")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.legend(title="class, AUROC (positives)", fontsize="x-small", title_fontsize="x-small", loc="lower right")
    return figure


def calibration_figure(target: Array, probability: Array, bins: int = 10) -> Figure:
    """Draws the frequency of classes by predicted probability, over all records and the classes that occur."""
    figure, axes = _figure(5, 5)
    occurs = target.any(axis=0)
    predicted, true = probability[:, occurs].ravel(), target[:, occurs].ravel()
    place = np.minimum((predicted * bins).astype(int), bins - 1)
    size = np.bincount(place, minlength=bins)
    some = size > 0
    mean, share = (np.bincount(place, value, minlength=bins)[some] / size[some] for value in (predicted, true))
    error = 1.96 * np.sqrt(share * (1 - share) / size[some])
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.errorbar(mean, share, yerr=error, marker="o", capsize=3)
    for x, y, count in zip(mean, share, size[some], strict=True):
        axes.annotate(f"{count}", (x, y), textcoords="offset points", xytext=(6, -10), fontsize="x-small")
    gap = np.abs(mean - share) @ size[some] / size.sum()
    axes.set(xlabel="predicted probability", ylabel="share that has the class", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title(f"expected calibration error {gap:.3f}; numbers are (record, class) pairs", fontsize="small")
    return figure


def examples_figure(
    lead: Array, sampling_rate: int, names: Sequence[str], target: Array, probability: Array, shown: int = 5
) -> Figure:
    """Lead II (n, L) in mV of some records, with their labels and the most probable classes; target (n, K)."""
    figure, all_axes = _figure(10, 1.6 * len(lead), rows=len(lead))
    for axes, trace, true, p in zip(all_axes, lead, target, probability, strict=True):
        axes.plot(np.arange(len(trace)) / sampling_rate, trace, color="black", linewidth=0.7)
        likely = ", ".join(f"{names[int(k)]} {p[k]:.2f}" for k in np.argsort(-p, kind="stable")[:shown])
        axes.set_title(f"true: {_listed(names, true)}   predicted: {likely}", fontsize="small", loc="left")
        axes.set_ylabel("II, mV", fontsize="small")
        axes.margins(x=0)
    all_axes[-1].set_xlabel("s")
    return figure


def confusion_figure(names: Sequence[str], target: Array, probability: Array) -> Figure:
    """Most probable class against the true ones, with counts; the colour is the share of the true class."""
    there = np.flatnonzero(target.any(axis=0) | np.bincount(probability.argmax(1), minlength=len(names)).astype(bool))
    predicted = np.eye(len(names))[probability.argmax(axis=1)]
    count = (target.T @ predicted)[np.ix_(there, there)]
    share = count / np.maximum(count.sum(axis=1, keepdims=True), 1)
    figure, axes = _figure(1.5 + 0.6 * len(there), 1 + 0.5 * len(there))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(count > 0):
        color = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count[row, column]:.0f}", ha="center", va="center", color=color, fontsize="small")
    labels = [names[int(k)] for k in there]
    axes.set_xticks(range(len(there)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(there)), labels)
    axes.set(xlabel="most probable", ylabel="true")
    return figure


def mixer_figure(lead: Array, sampling_rate: int, weights: Array, bands: Sequence[str], start: float = 0.0) -> Figure:
    """Draws lead II (L,) in mV above the mixer weights (layers, L, M), as deviations from their mean over time.

    The mean of each weight is printed beside its band; blue is below the mean, red above.
    """
    deviation = weights - weights.mean(axis=1, keepdims=True)
    limit = float(np.abs(deviation).max()) or 1.0
    end = start + len(lead) / sampling_rate
    figure, (top, *rest) = _figure(10, 1.8 + 1.3 * len(weights), rows=1 + len(weights))
    top.plot(start + np.arange(len(lead)) / sampling_rate, lead, color="black", linewidth=0.9)
    top.set_ylabel("II, mV", fontsize="small")
    top.set_xlim(start, end)
    for layer, axes in enumerate(rest):
        image = axes.imshow(
            deviation[layer].T, cmap="coolwarm", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest",
            extent=(start, end, len(bands) - 0.5, -0.5),
        )  # fmt: skip
        means = weights[layer].mean(axis=0)
        axes.set_yticks(
            range(len(bands)), [f"{b} {m:.2f}" for b, m in zip(bands, means, strict=True)], fontsize="x-small"
        )
        axes.set_title(f"layer {layer}", fontsize="small", loc="left")
    rest[-1].set_xlabel("s")
    figure.colorbar(image, ax=rest, label="weight - mean over the record")
    return figure


def _listed(names: Sequence[str], row: Array) -> str:
    return ", ".join(names[int(k)] for k in np.flatnonzero(row))


def _figure(width: float, height: float, rows: int = 1) -> tuple[Figure, Any]:
    """Creates a figure outside of pyplot, which would keep it."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Array = figure.subplots(rows, 1, sharex=rows > 1, squeeze=False)[:, 0]
    return figure, axes[0] if rows == 1 else axes
