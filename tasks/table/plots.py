"""The table as pictures: the rows with their intervals, and the learning curves."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tasks.reports import style
from tasks.table.rows import Row, Section

Values = npt.NDArray[np.float64]

MANY = 10  # colours that can be told apart


def finding(section: Section) -> str:
    """What the table shows, as a sentence: the best row, and how many others its interval does not exclude."""
    first, *others = sorted(section.rows, key=lambda row: -row.mean)
    show, (low, high) = section.benchmark.show, first.interval()
    near = sum(low <= row.interval()[1] and row.interval()[0] <= high for row in others)
    best = f"Best: {first.label}, {show(first.mean)}"
    if not others:
        return best
    if near == 0:
        return f"{best}, above all others"
    return f"{best}; {near} of {len(others)} others within the intervals"


@style.styled
def intervals(path: Path, section: Section) -> None:
    """Draws a dot per row with its 95 % interval, and a tick for each of several seeds."""
    benchmark, rows = section.benchmark, section.ranked[::-1]
    scale = 100 if benchmark.percent else 1
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.32 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        color = style.OURS if row.label.startswith("MS-SSM") else style.OTHERS
        low, high = row.interval()
        axes.hlines(place, scale * low, scale * high, color=color, linewidth=2)
        axes.plot(scale * row.mean, place, "o", color=color, markersize=7)
        if len(row.runs) > 1:
            seeds = [scale * value for value in row.values]
            axes.plot(seeds, [place] * len(seeds), "|", color="black", markersize=9)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)  # of two rows, too, each dot is whole
    axes.grid(axis="y", visible=False)
    over = {"over seeds (ticks)" if len(row.runs) > 1 else benchmark.interval_over for row in rows}
    intervals = "\nor ".join(sorted(over))
    label = f"test {benchmark.measure}{benchmark.unit}; 95 % interval,\n{intervals}"
    # As words: a line at it would press together what is to be compared.
    bound = benchmark.bound(section.first)
    axes.set_xlabel(f"{label}\n{bound[0]}: {benchmark.show(bound[1])}" if bound else label)
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

    Of more rows than there are colours, the first, the best and the worst have one.
    """
    benchmark = section.benchmark
    scale = 100 if benchmark.percent else 1
    curves = {row.label: _curve(row, scale) for row in section.ranked}
    rows = [row for row in section.ranked if curves[row.label][0]]  # of the others, the events are gone
    named = rows if len(rows) <= MANY else [row for row in rows if row in (section.rows[0], rows[0], rows[-1])]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for row in rows:
        if row not in named:
            steps, _, mean, _ = curves[row.label]
            axes.plot(steps, mean, color=style.QUIET, linewidth=0.7, alpha=0.6)
    for row in named:
        steps, lowest, mean, highest = curves[row.label]
        [line] = axes.plot(steps, mean, marker=".", label=row.label)
        axes.fill_between(steps, lowest, highest, color=line.get_color(), alpha=0.15)
    several = any(len(row.runs) > 1 for row in rows)
    _head(figure, section)
    axes.set_xlabel("training steps" + ("; band: lowest to highest seed" if several else ""))
    axes.set_ylabel(f"validation {benchmark.measure}{benchmark.unit}")
    if len(named) < len(rows):
        axes.plot([], [], color=style.QUIET, linewidth=0.7, label=f"the other {len(rows) - len(named)}")
    if rows:
        axes.legend(fontsize="small")
    _save(figure, path)


def _curve(row: Row, scale: float) -> tuple[list[int], Values, Values, Values]:
    tag = row.benchmark.metric.replace("test/", "val/")
    steps, *values = band([read_curve(run.folder, tag) for run in row.runs])
    lowest, mean, highest = scale * np.array(values)
    return steps, lowest, mean, highest


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path)
    plt.close(figure)
