"""A 12-lead ECG on paper: 25 mm/s, 10 mm/mV, three rows of four leads and a rhythm strip."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datamodules.ptbxl import LEADS

Floats = npt.NDArray[np.float64]

SPEED, GAIN = 25, 10  # mm per s, mm per mV
COLUMN, COLUMNS = 2.5, 4  # s
_ROWS = [["I", "AVR", "V1", "V4"], ["II", "AVL", "V2", "V5"], ["III", "AVF", "V3", "V6"]]
_TALLEST = 4.0  # mV from the baseline; what goes further is cut off
_LEFT, _RIGHT, _HEADER, _FOOTER, _NAME = 15, 5, 30, 9, 6  # mm
_REMARKS = 4  # lines
_PULSE = np.array([[2, 0], [4, 0], [4, GAIN], [9, GAIN], [9, 0], [11, 0]])  # mm: 1 mV for 0.2 s
_PAPER, _THIN, _THICK, _INK = "#fff8f6", "#f7d3cf", "#e9a39c", "#16161d"
RESEARCH = "Research model, not a medical device: not for diagnosis."


def ecg_figure(
    signal: Floats, sampling_rate: float, title: str, remarks: Sequence[str], findings: Sequence[tuple[str, float]]
) -> Figure:
    """Draws at most the first 10 s, each lead around its median.

    Args:
        signal: (L, 12) mV in the order of `LEADS`.
        sampling_rate: Hz.
        title: name of the recording.
        remarks: lines below the title.
        findings: (class, probability); the first are shown.
    """
    seconds = len(signal) / sampling_rate
    traces = np.clip(signal - np.median(signal, axis=0), -_TALLEST, _TALLEST)
    traces = traces[: round(COLUMN * COLUMNS * sampling_rate)]
    # A short recording would leave the last columns empty: there every lead begins with it.
    aligned = seconds > COLUMN * (COLUMNS - 1)
    rows = [[_segment(traces, lead, column * aligned, sampling_rate) for column, lead in enumerate(r)] for r in _ROWS]
    rows.append([traces[:, LEADS.index("II")]])
    names = [*_ROWS, ["II"]]
    baselines, depth = _baselines(rows)
    width = _LEFT + SPEED * COLUMN * COLUMNS + _RIGHT
    height = _HEADER + depth + _FOOTER
    figure = Figure(figsize=(width / 25.4, height / 25.4), facecolor="white")
    axes = figure.add_axes((0, _FOOTER / height, 1, depth / height), xlim=(0, width), ylim=(-depth, 0))
    _paper(axes, width, depth)
    for row, labels, baseline in zip(rows, names, baselines, strict=True):
        axes.plot(_PULSE[:, 0], baseline + _PULSE[:, 1], color=_INK, linewidth=0.8)
        top = baseline + max(_reach(row)[0], GAIN) + 1.2
        for column, (trace, lead) in enumerate(zip(row, labels, strict=True)):
            begin = _LEFT + column * SPEED * COLUMN
            time = begin + SPEED * np.arange(len(trace)) / sampling_rate
            axes.plot(time, baseline + GAIN * trace, color=_INK, linewidth=0.75, solid_joinstyle="round")
            name = lead.replace("AV", "aV")
            axes.text(begin + 1, top, name, color=_INK, fontsize=9, fontweight="bold", va="bottom")
            if column:
                axes.plot([begin, begin], [baseline - 3, baseline + 3], color=_INK, linewidth=0.6)
    _header(figure, height, title, remarks, findings)
    shown = f"first {COLUMN * COLUMNS:g} of {seconds:.1f} s" if seconds > COLUMN * COLUMNS else f"{seconds:.1f} s"
    alignment = "" if aligned else "    every lead from 0 s"
    scale = f"{SPEED} mm/s    {GAIN} mm/mV    {sampling_rate:g} Hz    {shown}{alignment}"
    figure.text(4 / width, 3 / height, scale, fontsize=8, color=_INK)
    figure.text(1 - 4 / width, 3 / height, RESEARCH, fontsize=8, color="#a01818", fontweight="bold", ha="right")
    return figure


def _segment(traces: Floats, lead: str, column: int, sampling_rate: float) -> Floats:
    begin, end = (round((column + i) * COLUMN * sampling_rate) for i in (0, 1))
    return traces[begin:end, LEADS.index(lead)]


def _reach(row: Sequence[Floats]) -> tuple[float, float]:
    """Extent of a row above and below its baseline, mm."""
    values = np.concatenate(row)
    return GAIN * max(0.0, values.max()), -GAIN * min(0.0, values.min())


def _baselines(rows: Sequence[Sequence[Floats]]) -> tuple[list[float], float]:
    """Heights of the baselines (mm below 0, on thick lines, so that rows do not touch), and the whole depth."""
    baselines, floor = [], 0.0
    for row in rows:
        above, below = _reach(row)
        floor -= max(above, GAIN) + _NAME
        floor = 5 * np.floor(floor / 5)
        baselines.append(float(floor))
        floor -= max(below, 5.0) + 1
    return baselines, float(-5 * np.floor(floor / 5))


def _paper(axes: Axes, width: float, depth: float) -> None:
    axes.set_facecolor(_PAPER)
    axes.set_xticks(np.arange(0, width + 1, 5))
    axes.set_xticks(np.arange(0, width + 1, 1), minor=True)
    axes.set_yticks(np.arange(-depth, 1, 5))
    axes.set_yticks(np.arange(-depth, 1, 1), minor=True)
    axes.grid(which="minor", color=_THIN, linewidth=0.35)
    axes.grid(which="major", color=_THICK, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _header(
    figure: Figure, height: float, title: str, remarks: Sequence[str], findings: Sequence[tuple[str, float]]
) -> None:
    def place(x: float, line: float, text: str, characters: int, **style: Any) -> None:
        short = text if len(text) <= characters else text[: characters - 1] + "…"
        figure.text(x, 1 - line / height, short, color=_INK, va="top", **style)

    place(0.016, 4, title, 50, fontsize=14, fontweight="bold")
    if len(remarks) > _REMARKS:
        remarks = [*remarks[: _REMARKS - 1], f"and {len(remarks) - _REMARKS + 1} more remarks"]
    for index, remark in enumerate(remarks):
        place(0.016, 11.5 + 4.4 * index, remark, 88, fontsize=8)
    for index, (name, probability) in enumerate(findings[:5]):
        line = 4 + 5 * index
        place(0.56, line, f"{probability:.2f}", 4, fontsize=9, fontweight="bold", family="monospace")
        place(0.60, line, name, 64, fontsize=9)
