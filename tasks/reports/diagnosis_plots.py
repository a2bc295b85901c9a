"""Plots of the diagnosis of one model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator

from msssm.diagnostics.mixer import COLLAPSED
from msssm.diagnostics.nan_guard import band_name
from tasks.reports import style


@style.styled
def write_all(folder: Path, result: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Path]:
    """Draws those plots for which the model has data; returns titles and paths."""
    makers: dict[str, tuple[str, Callable[..., bool]]] = {
        "Effective memory": ("memory", memory_plot),
        "Mixing distance": ("mixing_distance", mixing_plot),
        "Scale mixer": ("mixer", mixer_plot),
    }
    written = {}
    for title, (name, make) in makers.items():
        path = folder / f"diagnostics_{name}.png"
        if make(path, result["layers"], arrays):
            written[title] = path
    return written


def _bands(count: int) -> list[str]:
    return ["single"] if count == 1 else [band_name(band, count) for band in range(count)]


def _heatmap(axes: Axes, values: Any, title: str, norm: Any, form: Callable[[float], str]) -> None:
    """Draws layers from top to bottom, bands from left to right, with a number in each cell."""
    axes.imshow(values, norm=norm, aspect="auto", cmap="viridis")
    for (layer, band), value in np.ndenumerate(values):
        dark = norm(value) < 0.6
        axes.text(band, layer, form(value), ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(values.shape[1]), _bands(values.shape[1]), rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(values.shape[0]), [str(layer) for layer in range(values.shape[0])], fontsize=7)
    axes.set_ylabel("layer")
    axes.set_title(title)
    axes.grid(visible=False)


def memory_plot(path: Path, layers: list[dict[str, Any]], arrays: dict[str, Any]) -> bool:
    """Effective memory per layer and band: from the parameters, and measured."""
    chosen = [layer["memory"] for layer in layers if "memory" in layer]
    if not chosen:
        return False
    parameters = np.array([memory["parameters"] for memory in chosen])
    measured = np.array([memory["measured"] for memory in chosen])
    both = np.concatenate((parameters, measured))
    norm = LogNorm(max(both.min(), 1e-3), max(both.max(), both.min() * 1.01))
    figure, axes = plt.subplots(1, 2, figsize=(9, 1.6 + 0.24 * len(chosen)), layout="constrained", sharey=True)

    def steps(value: float) -> str:
        return f"{value:.1f}" if value < 100 else f"{value:.0f}"

    _heatmap(axes[0], parameters, "steps, from the parameters", norm, steps)
    _heatmap(axes[1], measured, "steps, measured on validation data", norm, steps)
    axes[1].set_ylabel("")
    return _save(figure, path)


def mixing_plot(path: Path, layers: list[dict[str, Any]], arrays: dict[str, Any]) -> bool:
    """Mean mixing distance per layer, and how the last output's influence is spread over the past."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    distances = [layer["mixing_distance"] for layer in layers]
    left.bar(range(len(layers)), distances, color="C0")
    left.axhline(float(np.mean(distances)), color="black", linestyle="--", label=f"mean {np.mean(distances):.1f}")
    left.set(xlabel="layer", ylabel="mean mixing distance, steps")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1))
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.95, len(layers)))
    for index, (layer, colour) in enumerate(zip(layers, colours, strict=True)):
        profile = arrays[layer["path"]]["profile"].numpy()
        label = f"layer {index}" if index in (0, len(layers) - 1) else None
        right.plot(np.arange(1, len(profile) + 1), np.cumsum(profile), color=colour, linewidth=1, label=label)
    right.set(xscale="log", ylim=(0, 1.02), xlabel="last steps", ylabel="share of |J| within them")
    right.legend(loc="lower right")
    return _save(figure, path)


def mixer_plot(path: Path, layers: list[dict[str, Any]], arrays: dict[str, Any]) -> bool:
    """Shares of the bands per layer, the number of bands in effect, and the shares along one sequence."""
    chosen = [layer for layer in layers if "mixer" in layer]
    if not chosen:
        return False
    means = np.array([layer["mixer"]["mean"] for layer in chosen])
    count = means.shape[1]
    figure, axes = plt.subplots(1, 3, figsize=(13, max(3.2, 1.6 + 0.24 * len(chosen))), layout="constrained")
    _heatmap(axes[0], means, "mean share of |E|", Normalize(0, 1), lambda share: f"{share:.2f}")
    axes[1].barh(range(len(chosen)), [layer["mixer"]["effective_bands"] for layer in chosen])
    axes[1].axvline(COLLAPSED, color="C3", linestyle="--", label="collapsed below")
    axes[1].axvline(count, color="C7", linestyle="--", label="uniform")
    axes[1].set(xlabel="bands in effect, exp(entropy)", xlim=(0, count * 1.05))
    axes[1].set_ylim(len(chosen) - 0.5, -0.5)
    axes[1].set_yticks(range(len(chosen)), [str(layer) for layer in range(len(chosen))], fontsize=7)
    axes[1].legend(loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=8, ncols=2)
    shares = np.mean([arrays[layer["path"]]["shares"].numpy() for layer in chosen], axis=0)
    steps = np.array_split(np.arange(len(shares)), min(len(shares), 200))
    binned = np.array([shares[part].mean(0) for part in steps])
    axes[2].stackplot([part[0] for part in steps], binned.T, labels=_bands(count))
    axes[2].set(xlabel="step of one validation sample", ylabel="share, mean over layers", ylim=(0, 1))
    axes[2].set_xlim(0, max(int(steps[-1][0]), 1))
    axes[2].legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=count, fontsize=7)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> bool:
    figure.savefig(path)
    plt.close(figure)
    return True
