"""The runs of one task, grouped into the rows of its table."""

from dataclasses import dataclass
from statistics import mean

from tasks.metrics.intervals import student
from tasks.reports.table.ablations import BASE, Difference, difference
from tasks.reports.table.runs import Run
from tasks.reports.table.subjects import Subject


@dataclass(frozen=True)
class Row:
    """The runs of one model, the paper's number for it where there is one, and of an ablation its difference."""

    subject: Subject
    label: str
    runs: list[Run]
    paper: str = ""
    difference: Difference | None = None

    @property
    def values(self) -> list[float]:
        return [self.subject.value(run) for run in self.runs]

    @property
    def mean(self) -> float:
        return mean(self.values)

    def interval(self) -> tuple[float, float]:
        """95 %: over test samples for one seed, over seeds (Student) for several."""
        return self.subject.interval(self.runs[0]) if len(self.runs) == 1 else student(self.values)


@dataclass(frozen=True)
class Section:
    """The table of one task.

    Attributes:
        rows: with runs of ours: those of the paper first, in its order.
        missing: labels of the paper's rows that we train, but have not yet.
        quoted: (label, number) of the paper's rows that we do not train.
        ablation: the rows change one option of the row `full` each.
    """

    subject: Subject
    rows: list[Row]
    missing: list[str]
    quoted: list[tuple[str, str]]
    ablation: bool

    @property
    def first(self) -> Run:
        """Any run: what a section says of its data holds for all."""
        return self.rows[0].runs[0]

    @property
    def title(self) -> str:
        return self.subject.data_name(self.first)

    @property
    def ranked(self) -> list[Row]:
        """Best first; ablations in the paper's order."""
        return self.rows if self.ablation else sorted(self.rows, key=lambda row: -row.mean)


def section(subject: Subject, runs: list[Run]) -> Section:
    """Groups the runs of one task, of which there is at least one."""
    base = [run for run in runs if run.row == BASE]
    references = subject.ablations(runs[0]) if base else subject.references(runs[0])
    trained = {reference.row: reference for reference in references if reference.row}
    names = [*trained, *dict.fromkeys(run.row for run in runs if run.row not in trained)]
    by_name = {name: [run for run in runs if run.row == name] for name in names}
    rows = [
        Row(
            subject,
            trained[name].label if name in trained else name,
            chosen,
            trained[name].paper if name in trained else "",
            difference(subject, chosen, base) if base and name != BASE else None,
        )
        for name, chosen in by_name.items()
        if chosen
    ]
    compared = any(by_name[name] for name in trained)
    expected = {name: reference for name, reference in trained.items() if reference.paper or not base}
    missing = [reference.label for name, reference in expected.items() if compared and not by_name[name]]
    quoted = [(reference.label, reference.paper) for reference in references if not reference.row]
    return Section(subject, rows, missing, quoted if compared else [], bool(base))
