"""table.csv: one line per run, with everything needed to repeat it."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.table.rows import Row, Section
from tasks.table.runs import Run

# Of an ablation: its row less `full`, and the 95 % interval of that.
DIFFERENCE = ("minus_full", "minus_full_low", "minus_full_high")


def write_csv(path: Path, sections: Sequence[Section]) -> None:
    """Writes the runs of all sections."""
    every = lines(sections)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, every[0].keys())
        writer.writeheader()
        writer.writerows(every)


def lines(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Lines of the CSV, one per run."""
    return [_line(section, row, run) for section in sections for row in section.rows for run in row.runs]


def _line(section: Section, row: Row, run: Run) -> dict[str, Any]:
    benchmark, metrics, hardware = section.benchmark, run.metrics, run.metrics["hardware"]
    low, high = benchmark.interval(run)
    origins = [*metrics.get("earlier", []), metrics]
    return {
        "task": benchmark.task,
        "row": run.row,
        "label": row.label,
        "data": section.title,
        "full_scale": benchmark.full_scale(run),
        "seed": metrics["seed"],
        "metric": benchmark.metric,
        "test": f"{benchmark.value(run):.5f}",
        "test_low": f"{low:.5f}",
        "test_high": f"{high:.5f}",
        "best_validation": f"{metrics['validation']['best']:.5f}",
        "test_size": run.counts["test"],
        "paper": row.paper,
        **dict.fromkeys(DIFFERENCE, ""),
        **dict(zip(DIFFERENCE, (f"{number:.5f}" for number in row.difference or ()), strict=False)),
        "parameters": metrics["parameters"],
        "steps": metrics["steps"],
        "batch_size": run.data["batch_size"],
        "processes": metrics["processes"],
        "precision": metrics["precision"],
        "train_seconds": f"{metrics['train_seconds']:.1f}",
        "cpu_seconds": _whole(metrics.get("cpu_seconds")),
        "processor_joules": _whole(metrics.get("processor_joules")),
        "data_digest": metrics["data"]["digest"],
        "commit": " + ".join(origin["commit"] or "" for origin in origins),
        "dirty": any(origin["dirty"] for origin in origins),
        **metrics["versions"],
        "processor": hardware["processor"],
        "threads": hardware["threads"],
        "gpus": " + ".join(hardware["gpus"]),
        "config": Path(*run.folder.parts[-4:]) / "config.yaml",
    }


def _whole(value: float | None) -> str:
    """Nothing where it was not measured."""
    return "" if value is None else f"{value:.0f}"
