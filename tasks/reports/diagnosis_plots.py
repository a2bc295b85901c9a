"""Plots of the diagnosis of one model."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from msssm.diagnostics.mixer import COLLAPSED
from msssm.diagnostics.nan_guard import band_name
from tasks.reports import style


@style.styled
def write_all(folder: Path, layers: list[dict[str, Any]], arrays: dict[str, dict[str, Any]]) -> dict[str, Path]:
    """Draws the plots for which the layers have numbers; returns the files by title.

    Args:
        folder: where to write.
        layers: numbers of each layer, as in diagnostics.json.
        arrays: by the path of a layer, "profile" (L,) of its mixing distance and "shares" (L, M) of its mixer.
    """
    figures = {}
    if remembering := [layer["memory"] for layer in layers if "memory" in layer]:
        figures["Effective memory"] = _memory(remembering)
    figures["Mixing distance"] = _mixing_distance(layers, [arrays[layer["path"]]["profile"] for layer in layers])
    if mixing := [layer for layer in layers if "mixer" in layer]:
        shares = np.mean([arrays[layer["path"]]["shares"] for layer in mixing], axis=0)
        figures["Scale mixer"] = _mixer([layer["mixer"] for layer in mixing], shares)
    files = {}
    for title, figure in figures.items():
        files[title] = folder / f"diagnostics_{title.lower().replace(' ', '_')}.png"
        figure.savefig(files[title])
        plt.close(figure)
    return files


def _memory(memories: list[dict[str, Any]]) -> Figure:
    """Effective memory per layer and band: from the parameters, and measured."""
    parameters, measured = (np.array([memory[name] for memory in memories]) for name in ("parameters", "measured"))
    both = np.concatenate((parameters, measured))
    norm = LogNorm(max(both.min(), 1e-3), max(both.max(), both.min() * 1.01))
    figure, axes = plt.subplots(1, 2, figsize=(9, 1.6 + 0.24 * len(memories)), layout="constrained", sharey=True)
    _heatmap(axes[0], parameters, "steps, from the parameters", norm)
    _heatmap(axes[1], measured, "steps, measured on validation data", norm)
    axes[1].set_ylabel("")
    return figure


def _mixing_distance(layers: list[dict[str, Any]], profiles: list[Any]) -> Figure:
    """Mean mixing distance per layer, and how the last output's influence is spread over the past."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    distances = [layer["mixing_distance"] for layer in layers]
    left.bar(range(len(layers)), distances, color="C0")
    left.axhline(float(np.mean(distances)), color="black", linestyle="--", label=f"mean {np.mean(distances):.1f}")
    left.set(xlabel="layer", ylabel="mean mixing distance, steps")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1))
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.95, len(layers)))
    for index, (profile, colour) in enumerate(zip(profiles, colours, strict=True)):
        steps = np.arange(1, len(profile) + 1)
        right.plot(steps, np.cumsum(profile), color=colour, linewidth=1.5, label=f"layer {index}")
    right.set(xscale="log", ylim=(0, 1.02), xlabel="last steps", ylabel="share of |J| within them")
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    return figure


def _mixer(mixers: list[dict[str, Any]], shares: Any) -> Figure:
    """Shares of the bands per layer, the number of bands in effect, and the shares (L, M) along one sequence."""
    means = np.array([mixer["mean"] for mixer in mixers])
    layers, bands = means.shape
    figure, axes = plt.subplots(1, 3, figsize=(13, max(3.2, 1.6 + 0.24 * layers)), layout="constrained")
    _heatmap(axes[0], means, "mean share of |E|", Normalize(0, 1))
    axes[1].barh(range(layers), [mixer["effective_bands"] for mixer in mixers])
    axes[1].axvline(COLLAPSED, color="C3", linestyle="--", label="collapsed below")
    axes[1].axvline(bands, color="C7", linestyle="--", label="uniform")
    axes[1].set(xlabel="bands in effect, exp(entropy)", xlim=(0, bands * 1.05), ylim=(layers - 0.5, -0.5))
    axes[1].set_yticks(range(layers), [str(layer) for layer in range(layers)], fontsize=9)
    axes[1].legend(loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=9, ncols=2)
    steps = np.array_split(np.arange(len(shares)), min(len(shares), 200))
    binned = np.array([shares[part].mean(0) for part in steps])
    axes[2].stackplot([part[0] for part in steps], binned.T, labels=_bands(bands))
    axes[2].set(xlabel="step of one validation sample", ylabel="share, mean over layers", ylim=(0, 1))
    axes[2].set_xlim(0, max(int(steps[-1][0]), 1))
    axes[2].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=bands, fontsize=9)
    return figure


def _heatmap(axes: Axes, values: Any, title: str, norm: Any) -> None:
    """Draws layers from top to bottom, bands from left to right, with a number in each cell."""
    axes.imshow(values, norm=norm, aspect="auto", cmap="viridis")
    for (layer, band), value in np.ndenumerate(values):
        colour = "white" if norm(value) < 0.6 else "black"
        axes.text(
            band,
            layer,
            f"{value:.2f}" if value < 10 else f"{value:.0f}",
            ha="center",
            va="center",
            fontsize=9,
            color=colour,
        )
    axes.set_xticks(range(values.shape[1]), _bands(values.shape[1]), rotation=30, ha="right", fontsize=9)
    axes.set_yticks(range(values.shape[0]), [str(layer) for layer in range(values.shape[0])], fontsize=9)
    axes.set_ylabel("layer")
    axes.set_title(title)
    axes.grid(visible=False)


def _bands(count: int) -> list[str]:
    return ["single"] if count == 1 else [band_name(band, count) for band in range(count)]
