"""The runs of one task, grouped into the rows of its table."""

from dataclasses import dataclass
from statistics import mean

from tasks.metrics.intervals import student_of_scores
from tasks.table.ablations import Difference, difference
from tasks.table.benchmarks import Benchmark
from tasks.table.runs import Run
from tasks.table.spec import Table


@dataclass(frozen=True)
class Row:
    """Runs of one model, the paper's number for it if there is one, and for an ablation its difference."""

    benchmark: Benchmark
    label: str
    runs: list[Run]
    paper: str = ""
    difference: Difference | None = None

    @property
    def values(self) -> list[float]:
        """Test metric of each run."""
        return [self.benchmark.value(run) for run in self.runs]

    @property
    def mean(self) -> float:
        """Mean over the runs."""
        return mean(self.values)

    def interval(self) -> tuple[float, float]:
        """95 % interval: over test samples for one seed, over seeds (Student) for several."""
        return self.benchmark.interval(self.runs[0]) if len(self.runs) == 1 else student_of_scores(self.values)


@dataclass(frozen=True)
class Section:
    """The table of one task.

    Attributes:
        rows: with runs of ours: those of the paper first, in its order.
        missing: labels of the paper's rows that we train, but have not yet.
        quoted: (label, number) of the paper's rows that we do not train.
        compare: row that the others are shown as differences to; empty if there is none.
        reduced: what is less than the paper's although the data are its own; empty if nothing is.
    """

    benchmark: Benchmark
    rows: list[Row]
    missing: list[str]
    quoted: list[tuple[str, str]]
    compare: str
    reduced: str = ""

    @property
    def first(self) -> Run:
        """A run that represents all in statements on the data."""
        return self.rows[0].runs[0]

    @property
    def title(self) -> str:
        """Name of the data, and what is reduced."""
        name = self.benchmark.data_name(self.first)
        return f"{name.removesuffix(' (reduced scale)')} (reduced: {self.reduced})" if self.reduced else name

    @property
    def has_paper(self) -> bool:
        """Whether the paper has a number for any of the rows."""
        return any(row.paper for row in self.rows)

    @property
    def ranked(self) -> list[Row]:
        """Rows, best first; ablations in the paper's order."""
        return self.rows if self.compare else sorted(self.rows, key=lambda row: -row.mean)


def section(benchmark: Benchmark, runs: list[Run], table: Table | None) -> Section:
    """Groups the runs of one task, at least one; rows without a table come last."""
    entries = table.rows if table else {}
    by_name: dict[str, list[Run]] = {name: [] for name in entries}
    for run in runs:
        by_name.setdefault(run.row, []).append(run)
    compare = table.compare if table and by_name.get(table.compare) else ""
    papers = {name: benchmark.paper(runs[0], entry.paper) for name, entry in entries.items()}
    rows = [
        Row(
            benchmark,
            entries[name].label if name in entries else name,
            chosen,
            papers.get(name, ""),
            difference(benchmark, chosen, by_name[compare]) if compare and name != compare else None,
        )
        for name, chosen in by_name.items()
        if chosen
    ]
    missing = [e.label for name, e in entries.items() if not by_name[name] and (papers[name] or not compare)]
    quoted = [(label, benchmark.paper(runs[0], number)) for label, number in table.quoted.items()] if table else []
    return Section(benchmark, rows, missing, quoted, compare, table.reduced if table else "")
