"""Accuracy by operator, depth and length as a picture."""

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from tasks.reports import style


@style.styled
def report_plot(path: Path, lines: list[dict[str, Any]]) -> None:
    """Draws one panel per kind of line, with Wilson's 95 % intervals; the dashed line is the accuracy over all."""
    overall = next(line for line in lines if line["kind"] == "all")
    kinds = list(dict.fromkeys(line["kind"] for line in lines if line["kind"] != "all"))
    groups = [[line for line in lines if line["kind"] == kind] for kind in kinds]
    widths = [max(2, len(group)) for group in groups]
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(2 + 0.6 * sum(widths), 3.6), width_ratios=widths, sharey=True, layout="constrained"
    )
    for ax, kind, group in zip(axes, kinds, groups, strict=True):
        values = [100 * line["accuracy"] for line in group]
        below = [100 * (line["accuracy"] - line["low"]) for line in group]
        above = [100 * (line["high"] - line["accuracy"]) for line in group]
        ax.errorbar(range(len(group)), values, yerr=[below, above], fmt="o", capsize=3)
        ax.axhline(100 * overall["accuracy"], color="black", linestyle="--", linewidth=1)
        ax.set_xticks(range(len(group)), [line["name"] for line in group], rotation=30, ha="right", fontsize=8)
        ax.set_xlim(-0.6, len(group) - 0.4)
        ax.set_title(kind)
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("accuracy, %")
    figure.savefig(path)
    plt.close(figure)
