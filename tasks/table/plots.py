"""The table as pictures: the rows with their intervals, and the learning curves."""

import math
import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tasks.reports import style
from tasks.table.collect import Section

Values = npt.NDArray[np.float64]

MANY = 10  # colours that can be told apart


def finding(section: Section) -> str:
    """What the table shows, as a sentence: the best row, and how many others its interval does not exclude."""
    rows = section.rows.sort_values("mean", ascending=section.column.direction == "lower", kind="stable")
    best, others = rows.iloc[0], rows.iloc[1:]
    text = f"Best: {best.label}, {section.column.show(best['mean'])}"
    if others.empty or math.isnan(best.low):
        return text
    near = int(((others.low <= best.high) & (others.high >= best.low)).sum())
    return f"{text}; {near} of {len(others)} others within the intervals" if near else f"{text}, above all others"


@style.styled
def intervals(path: Path, section: Section) -> None:
    """Draws a dot per row with its 95 % interval, and a tick for each of several seeds."""
    column, scale, rows = section.column, section.column.scale, section.rows.iloc[::-1]
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.32 * len(rows)), layout="constrained")
    for place, row in enumerate(section.lines[::-1]):
        color = style.OURS if row.label.startswith("MS-SSM") else style.OTHERS
        axes.hlines(place, scale * row.low, scale * row.high, color=color, linewidth=2)
        axes.plot(scale * row.mean, place, "o", color=color, markersize=7)
        if row.seeds > 1:
            seeds = scale * section.runs.test[section.runs.row == row.Index]
            axes.plot(seeds, [place] * len(seeds), "|", color="black", markersize=9)
    axes.set_yticks(range(len(rows)), rows.label.tolist())
    axes.set_ylim(-0.6, len(rows) - 0.4)  # of two rows, too, each dot is whole
    axes.grid(axis="y", visible=False)
    over = {"over seeds (ticks)" if seeds > 1 else column.over for seeds in rows.seeds}
    label = f"test {column.measure}; 95 % interval,\n" + "\nor ".join(sorted(filter(None, over)))
    # As words: a line at it would press together what is to be compared.
    bounds = [f"{name}: {shown}" for name, shown in section.bounds().items()]
    axes.set_xlabel("\n".join([label, *bounds]))
    _head(figure, section)
    _save(figure, path)


def _head(figure: Figure, section: Section) -> None:
    """Over the whole width: labels of rows take what is left of the axes, and may be long."""
    lines = [textwrap.fill(line, 95) for line in (section.title, finding(section))]
    figure.suptitle("\n".join(lines), x=0.01, horizontalalignment="left", fontsize="medium")


def read_curve(folder: Path, tag: str) -> tuple[list[int], list[float]]:
    """Steps and values of one scalar from the TensorBoard events of a run, restarts merged."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    if tag not in events.Tags()["scalars"]:
        return [], []
    in_time = sorted(events.Scalars(tag), key=lambda event: event.wall_time)  # files come in their names' order
    points = {event.step: event.value for event in in_time}
    return sorted(points), [points[step] for step in sorted(points)]


def band(curves: Sequence[tuple[list[int], list[float]]]) -> tuple[list[int], Values, Values, Values]:
    """Steps that all curves with any points have, and there the lowest value, the mean and the highest."""
    drawn = [curve for curve in curves if curve[0]] or curves  # the events of a run may be gone
    points = [dict(zip(steps, values, strict=True)) for steps, values in drawn]
    steps = sorted(set.intersection(*(set(each) for each in points)))
    values = np.array([[each[step] for step in steps] for each in points])
    return steps, values.min(0), values.mean(0), values.max(0)


@style.styled
def learning_curves(path: Path, section: Section) -> None:
    """Draws the validation metric against training steps: mean over seeds, in a band from the lowest to the highest.

    Colours the first, best and worst rows when there are more rows than colours.
    """
    column, scale = section.column, section.column.scale
    tag = column.metric.replace("test/", "val/")
    curves: dict[str, tuple[list[int], Values, Values, Values]] = {}
    for name in section.rows.index:
        folders = section.runs.folder[section.runs.row == name]
        steps, *values = band([read_curve(Path(folder), tag) for folder in folders])
        if steps:  # of the others, the events are gone
            lowest, mean, highest = (scale * each for each in values)
            curves[name] = steps, lowest, mean, highest
    drawn = list(curves)
    few = drawn if len(drawn) <= MANY else [section.runs.row[0], drawn[0], drawn[-1]]
    named = [name for name in drawn if name in few]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name in drawn:
        if name not in named:
            axes.plot(curves[name][0], curves[name][2], color=style.QUIET, linewidth=0.7, alpha=0.6)
    for name in named:
        steps, lowest, mean, highest = curves[name]
        [line] = axes.plot(steps, mean, marker=".", label=section.rows.label[name])
        axes.fill_between(steps, lowest, highest, color=line.get_color(), alpha=0.15)
    _head(figure, section)
    axes.set_xlabel("training steps" + ("; band: lowest to highest seed" if section.rows.seeds.max() > 1 else ""))
    axes.set_ylabel(f"validation {column.measure}")
    if len(named) < len(drawn):
        axes.plot([], [], color=style.QUIET, linewidth=0.7, label=f"the other {len(drawn) - len(named)}")
    if drawn:
        axes.legend(fontsize="small")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Writes a PNG of few colours, a quarter as large."""
    with BytesIO() as buffer:
        figure.savefig(buffer, dpi=110)
        plt.close(figure)
        Image.open(buffer).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
