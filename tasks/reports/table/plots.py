"""The table as pictures: the rows with their intervals, and the learning curves."""

from pathlib import Path

import matplotlib
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tasks.reports.table.rows import Section

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def bars(path: Path, section: Section) -> None:
    """A bar per row with its 95 % interval, the worst at the bottom, and the bound of a trivial answer as a line."""
    benchmark, rows = section.benchmark, section.ranked[::-1]
    scale = 100 if benchmark.percent else 1
    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.4 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        low, high = row.interval()
        color = "tab:orange" if row.label.startswith("MS-SSM") else "tab:blue"
        error = [[scale * (row.mean - low)], [scale * (high - row.mean)]]
        axes.barh(place, scale * row.mean, color=color, xerr=error, capsize=3)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    if bound := benchmark.bound(section.first):
        axes.axvline(scale * bound[1], color="black", linestyle="--", label=bound[0])
        figure.legend(loc="outside lower right")
    axes.set_xlabel(f"test {benchmark.measure}{benchmark.unit}; 95 % interval")
    axes.set_title(section.title, loc="left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def read_curve(folder: Path, tag: str) -> tuple[list[int], list[float]]:
    """Steps and values of one scalar from the TensorBoard events of a run, restarts merged."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    if tag not in events.Tags()["scalars"]:
        return [], []
    points = {event.step: event.value for event in events.Scalars(tag)}
    return sorted(points), [points[step] for step in sorted(points)]


def learning_curves(path: Path, section: Section) -> None:
    """Validation metric against training steps, one colour per row, one line per seed."""
    benchmark = section.benchmark
    scale = 100 if benchmark.percent else 1
    many = len(section.rows) > 10
    colors = plt.get_cmap("turbo", len(section.rows)) if many else plt.get_cmap("tab10")
    figure, axes = plt.subplots(figsize=(12, 7) if many else (8, 5), layout="constrained")
    for index, row in enumerate(section.rows):
        for number, run in enumerate(row.runs):
            steps, values = read_curve(run.folder, benchmark.metric.replace("test/", "val/"))
            label = row.label if number == 0 else None
            axes.plot(steps, [scale * value for value in values], color=colors(index), marker=".", label=label)
    axes.set_title(section.title, loc="left")
    axes.set_xlabel("training steps")
    axes.set_ylabel(f"validation {benchmark.measure}{benchmark.unit}")
    axes.grid(alpha=0.3)
    if many:
        figure.legend(fontsize="small", loc="outside right upper")
    else:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)
