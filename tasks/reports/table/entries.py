"""Labels, order and the paper's numbers of the rows of runs, from their experiment."""

from collections.abc import Sequence
from pathlib import Path

from tasks.experiments.files import table_file, tables
from tasks.experiments.table import Table, read_table
from tasks.reports.table.runs import Run


def entries(folder: Path, runs: Sequence[Run], task: str, known: Sequence[Table]) -> Table | None:
    """The table of these runs; None if no experiment has any of their rows.

    Args:
        folder: of the results, whose name decides where the rows do not: `quick`, `medium-choices`.
        runs: of one task.
        task: its name.
        known: tables that come before those of msssm.
    """
    rows = {run.row for run in runs}
    ours = [read_table(table_file(name)) for name in tables() if name.endswith(f"/{task}")]
    for candidates in ([table for table in known if table.task == task], ours):
        fits = {table.path: len(rows & table.rows.keys()) for table in candidates}
        best = max(candidates, key=lambda t: (fits[t.path], folder.name.endswith(t.experiment)), default=None)
        if best is not None and fits[best.path]:
            return best
    return None
