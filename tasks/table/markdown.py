"""The table as Markdown that also reads well in a terminal."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from tasks.reports.markdown import table
from tasks.run.provenance import commits
from tasks.table.rows import Row, Section


def document(sections: Sequence[Section]) -> str:
    """Formats an overview if there are several tasks, then a section for each."""
    parts = [_overview(sections)] if len(sections) > 1 else []
    return "\n".join([*parts, *map(_section, sections)])


def header(section: Section) -> list[str]:
    """Column names of a section."""
    benchmark, run = section.benchmark, section.first
    names = [
        "model",
        f"ours: {benchmark.measure} on {section.title}{benchmark.unit}",
        "95 % interval",
        "min .. max",
        "seeds",
        "parameters",
        "training, CPU s" if _clock(section) == "cpu_seconds" else "training, s",
    ]
    if section.has_paper:
        names.append(f"paper: {benchmark.measure} on {benchmark.paper_name(run)}{benchmark.unit}")
    if section.compare:
        names[3:3] = [f"minus {section.compare}", "its 95 % interval"]
    return names


def cells(section: Section) -> list[list[str]]:
    """Rows of a section, best first, then the bound of a trivial answer."""
    width = len(header(section))
    lines = [_cells(row, _clock(section)) for row in section.ranked]
    if section.compare:
        for line, row in zip(lines, section.ranked, strict=True):
            line[3:3] = _difference(row)
    lines = [line[:width] for line in lines]
    if bound := section.benchmark.bound(section.first):
        name, value = bound
        lines.append([f"{name} (bound)", section.benchmark.show(value), *[""] * (width - 2)])
    return lines


def about(section: Section) -> list[str]:
    """Two lines on data and training of a section."""
    run, counts = section.first, section.first.counts
    return [
        f"Data: {counts['train']:,} / {counts['val']:,} / {counts['test']:,} samples, "
        f"{section.benchmark.describe(run)}, digest {run.metrics['data']['digest'][:12]}.",
        f"Training: {section.benchmark.training(run)}; tested once, at the best validation.",
    ]


def remarks(section: Section) -> list[str]:
    """Lines that explain a section's numbers."""
    lines = [
        f"Interval: 95 %, {section.benchmark.interval_over} where there is one seed (another seed may differ by more), "
        "over seeds (Student) where there are several."
    ]
    other = "data" if not section.benchmark.full_scale(section.first) else "networks" if section.reduced else ""
    if other and section.has_paper:
        lines[0] += f" The paper's column is of other {other}: not comparable in value."
    if section.compare:
        lines.append(
            f"Minus {section.compare}: the row less the first one, paired over the same test samples (bootstrap), or "
            "by seed (Student) where there are several seeds."
        )
    if section.quoted:
        quoted = "; ".join(f"{label} {number}" for label, number in section.quoted if number)
        lines.append(f"Only quoted, on {section.benchmark.paper_name(section.first)}: {quoted}.")
    lines.append(_provenance(section))
    if section.missing:
        lines.append(f"Partial table, not yet run: {'; '.join(section.missing)}.")
    return lines


def _section(section: Section) -> str:
    lines = [
        f"# {section.title}" + (": ours beside the paper's" if section.has_paper else ""),
        "",
        *about(section),
        "",
        *table([header(section), *cells(section)]),
        "",
        *remarks(section),
    ]
    return "\n".join(lines) + "\n"


def _clock(section: Section) -> str:
    """Metric of the duration: runs of earlier versions have the wall clock alone."""
    runs = [run for row in section.rows for run in row.runs]
    return "cpu_seconds" if all("cpu_seconds" in run.metrics for run in runs) else "train_seconds"


def _cells(row: Row, clock: str) -> list[str]:
    show = row.benchmark.show
    low, high = row.interval()
    return [
        row.label,
        show(row.mean),
        f"{show(low)} .. {show(high)}",
        f"{show(min(row.values))} .. {show(max(row.values))}" if len(row.runs) > 1 else "",
        str(len(row.runs)),
        f"{row.runs[0].metrics['parameters']:,}",
        f"{mean(run.metrics[clock] for run in row.runs):.0f}",
        row.paper,
    ]


def _difference(row: Row) -> list[str]:
    if row.difference is None:
        return ["", ""]
    value, low, high = (("+" if number > 0 else "") + row.benchmark.show(number) for number in row.difference)
    return [value, f"{low} .. {high}"]


def overview_cells(sections: Sequence[Section]) -> list[list[str]]:
    """Header and rows of the overview: each model's number and interval for every task."""
    labels = list(dict.fromkeys(row.label for section in sections for row in section.rows))
    lines = [["model", *(f"{s.title}: {s.benchmark.measure}{s.benchmark.unit}" for s in sections)]]
    for label in labels:
        found = [next((row for row in section.rows if row.label == label), None) for section in sections]
        lines.append([label, *("" if row is None else _short(row) for row in found)])
    return lines


def _short(row: Row) -> str:
    low, high = row.interval()
    return f"{row.benchmark.show(row.mean)} ({row.benchmark.show(low)} .. {row.benchmark.show(high)})"


def _overview(sections: Sequence[Section]) -> str:
    return "\n".join(["# All tasks: mean over seeds and 95 % interval", "", *table(overview_cells(sections)), ""])


def _provenance(section: Section) -> str:
    """Commit, versions and hardware; each stated once, with all its values."""
    runs = [run for row in section.rows for run in row.runs]

    def values(key: Any) -> str:
        return ", ".join(sorted({key(run.metrics) for run in runs}))

    commit = ", ".join(sorted({each for run in runs for each in commits(run.metrics, 12)}))
    torch = values(lambda m: m["versions"]["torch"])
    hardware = values(
        lambda m: (
            " + ".join(m["hardware"]["gpus"])
            or f"{m['hardware']['processor']}, {m['hardware']['threads']} thread(s) per run"
        )
    )
    return f"Commit {commit}; torch {torch}; {hardware}. Each run's provenance is in table.csv."
