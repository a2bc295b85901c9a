"""The table as pictures: accuracies with their intervals, and the learning curves."""

from pathlib import Path

import matplotlib
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CURVE = "val/accuracy"


def accuracy_plot(path: Path, title: str, rows: list[tuple[str, float, tuple[float, float]]], bound: float) -> None:
    """Bars of (label, accuracy, 95 % interval) in percent, with the root operator's bound as a line."""
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.4 * len(rows)), layout="constrained")
    for place, (label, accuracy, (low, high)) in enumerate(rows):
        color = "tab:orange" if label.startswith("MS-SSM") else "tab:blue"
        axes.barh(place, accuracy, color=color, xerr=[[accuracy - low], [high - accuracy]], capsize=3)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.axvline(bound, color="black", linestyle="--", label="root operator alone")
    axes.set_xlabel("test accuracy, %; 95 % interval")
    axes.set_title(title, loc="left")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def read_curve(folder: Path) -> tuple[list[int], list[float]]:
    """Steps and validation accuracies (percent) from the TensorBoard events of a run, restarts merged."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    if CURVE not in events.Tags()["scalars"]:
        return [], []
    points = {event.step: 100 * event.value for event in events.Scalars(CURVE)}
    return sorted(points), [points[step] for step in sorted(points)]


def learning_curves_plot(path: Path, title: str, rows: dict[str, list[Path]]) -> None:
    """Validation accuracy against training steps, one colour per row, one line per seed."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for index, (label, folders) in enumerate(rows.items()):
        for seed, folder in enumerate(folders):
            axes.plot(*read_curve(folder), color=f"C{index}", marker=".", label=label if seed == 0 else None)
    axes.set_title(title, loc="left")
    axes.set_xlabel("training steps")
    axes.set_ylabel("validation accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)
