"""Labels, order and the paper's numbers of the rows of runs, from their experiment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.table.files import table_file, tables
from tasks.table.runs import Run
from tasks.table.spec import Table, read_table


def entries(folder: Path, runs: Sequence[Run], task: str, known: Sequence[Table]) -> Table | None:
    """The table of these runs; None if no experiment has any of their rows.

    Args:
        folder: of the results, whose name decides where the rows do not: `quick`, `medium-choices`.
        runs: of one task, whose recipes decide where the name does not.
        task: its name.
        known: tables that come before those of msssm.
    """
    rows = {run.row for run in runs}
    ours = [read_table(table_file(name)) for name in tables() if name.endswith(f"/{task}")]
    for candidates in ([table for table in known if table.task == task], ours):
        fits = {table.path: len(rows & table.rows.keys()) for table in candidates}
        best = max(
            candidates,
            key=lambda t: (fits[t.path], folder.name.endswith(t.experiment), _alike(t, runs)),
            default=None,
        )
        if best is not None and fits[best.path]:
            return best
    return None


def _alike(table: Table, runs: Sequence[Run]) -> int:
    """Number of options that the first run of one of the table's rows has as its recipe has them."""
    run = next((run for run in runs if run.row in table.rows), None)
    return _equal(table.recipe(run.row), run.recipe) if run else 0


def _equal(a: Any, b: Any) -> int:
    if isinstance(a, dict) and isinstance(b, dict):
        return sum(_equal(a[key], b[key]) for key in a.keys() & b.keys())
    return int(a == b)
