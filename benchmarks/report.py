"""What a run of the benchmarks leaves: JSON and a Markdown table."""

import json
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare import BOTH, FORWARD, Row
from benchmarks.floors import Floors
from msssm.doctor import processor

# What the ratios are against; those that a case lacks stay empty.
PEERS = {"sequential": "sequential", "Blelloch": "Blelloch", "assoc.": "associative_scan", "torch": "pure torch"}


QUIET = 0.15


def machine(device: torch.device) -> dict[str, Any]:
    """Name of the device, and what else times depend on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def folder_of(about: dict[str, Any], results: Path) -> Path:
    """Creates the folder of a machine's results."""
    folder = results / re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def ratios(row: Row, rows: list[Row], direction: str, floors: Floors) -> dict[str, float]:
    """How many times faster than each peer of the same case (x), and how many times the floors (over 1)."""
    if direction not in row.times:
        return {}
    own = row.times[direction].best
    others = {other.method: other for other in rows if (other.section, other.case) == (row.section, row.case)}
    found = {
        label: others[method].times[direction].best / own
        for label, method in PEERS.items()
        if method != row.method and method in others and direction in others[method].times
    }
    if row.elements:
        least = floors.arithmetic_ms(row.elements, direction == BOTH)
        if least is not None:
            found["arithmetic floor"] = own / least
        found["bandwidth floor"] = own / floors.bandwidth_ms(row.moved[direction == BOTH])
    return found


def summary(rows: list[Row]) -> dict[str, float]:
    """The ratios between cases that are worth a line of their own."""
    best = {(row.section, row.case, row.method, d): t.best for row in rows for d, t in row.times.items()}
    memory = {(row.section, row.case, row.method): row.memory_mib for row in rows}
    found = {}
    shape = next((row.case.rsplit(",", 1)[0] for row in rows if row.section == "scan"), None)
    if shape is not None:
        one, five = ("scan", f"{shape}, 1 band", "msssm"), ("scan", f"{shape}, 5 bands", "msssm")
        for direction in (FORWARD, BOTH):
            if (*one, direction) in best and (*five, direction) in best:
                found[f"5 bands over 1 band, {direction}"] = best[*five, direction] / best[*one, direction]
        small, large = memory.get(one), memory.get(five)
        if small and large:
            found["5 bands over 1 band, peak memory"] = large / small
    for row in rows:
        key = ("layer", row.case, "its scan alone", BOTH)
        if row.section == "layer" and row.method == "msssm" and key in best and BOTH in row.times:
            found[f"layer over its scan alone, {row.case}, {BOTH}"] = row.times[BOTH].best / best[key]
    return found


def as_json(rows: list[Row], floors: Floors, about: dict[str, Any], drift: float = 0.0) -> str:
    """Everything measured, ratios included."""
    content = {
        "machine": about,
        "floors": floors._asdict(),
        "drift": drift,
        "summary": summary(rows),
        "rows": [
            {
                **asdict(row),
                "times": {direction: t._asdict() for direction, t in row.times.items()},
                "ratios": {direction: ratios(row, rows, direction, floors) for direction in row.times},
            }
            for row in rows
        ],
    }
    return json.dumps(content, indent=1) + "\n"


def as_markdown(rows: list[Row], floors: Floors, about: dict[str, Any], drift: float = 0.0) -> str:
    """A table per section."""
    return "\n".join(_lines(rows, floors, about, drift)) + "\n"


def _lines(rows: list[Row], floors: Floors, about: dict[str, Any], drift: float) -> Iterator[str]:
    yield f"# Benchmarks on {about['device']}"
    yield ""
    yield f"{about['threads']} threads, {about['capability']}, torch {about['torch']}, Python {about['python']}."
    yield "Milliseconds in float32: the best of several runs, the median in brackets, methods in turn. Columns with `x`"
    yield "say how many times faster a method is than the one named, forward / forward + backward; columns `floor`, how"
    yield "many times the least possible time it takes (`benchmarks/floors.py`). MiB: peak above inputs and gradients."
    yield ""
    if floors.forward_steps_per_s is not None and floors.backward_steps_per_s is not None:
        yield f"Floors: {floors.forward_steps_per_s / 1e9:.1f} G state steps/s forward,"
        yield f"{floors.backward_steps_per_s / 1e9:.1f} G backward, {floors.bytes_per_s / 1e9:.1f} GB/s copied."
    else:
        yield f"Floors: {floors.bytes_per_s / 1e9:.1f} GB/s copied; {floors.note}."
    yield ""
    if drift > QUIET:
        yield f"**The machine was not quiet**: its floors differed by {drift:.0%} between start and end. Measure again."
        yield ""
    for name, value in summary(rows).items():
        yield f"- {name}: {value:.2f}"
    for section in dict.fromkeys(row.section for row in rows):
        yield from ("", f"## {section}", "")
        own = [row for row in rows if row.section == section]
        labels = [*PEERS, "arithmetic floor", "bandwidth floor"]
        per_row = [{d: ratios(row, rows, d, floors) for d in (FORWARD, BOTH)} for row in own]
        labels = [label for label in labels if any(label in r for both in per_row for r in both.values())]
        head = ["case", "method", FORWARD, BOTH, *(f"x {n}" if n in PEERS else n for n in labels), "MiB", "error", ""]
        yield f"| {' | '.join(head)} |"
        yield f"|{' --- |' * len(head)}"
        for row, found in zip(own, per_row, strict=True):
            cells = [row.case, row.method]
            cells += [_time(row, direction) for direction in (FORWARD, BOTH)]
            cells += [" / ".join(_ratio(found[d].get(label)) for d in (FORWARD, BOTH)) for label in labels]
            cells.append("" if row.memory_mib is None else f"{row.memory_mib:.1f}")
            cells += ["" if row.error is None else f"{row.error:.0e}", row.note]
            yield f"| {' | '.join(cells)} |"


def _time(row: Row, direction: str) -> str:
    if direction not in row.times:
        return ""
    timing = row.times[direction]
    return f"{timing.best:.3g} ({timing.median:.3g})"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if value < 100 else f"{value:.0f}"


def write(rows: list[Row], floors: Floors, device: torch.device, results: Path, drift: float = 0.0) -> Path:
    """bench.json and bench.md below `results`/<device name>; returns the folder."""
    about = machine(device)
    folder = folder_of(about, results)
    (folder / "bench.json").write_text(as_json(rows, floors, about, drift))
    (folder / "bench.md").write_text(as_markdown(rows, floors, about, drift))
    return folder
