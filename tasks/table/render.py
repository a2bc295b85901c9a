"""Tables as files: table.md, table.csv, table.html, the recipe of each task, and plots."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import pandas as pd

from msssm.errors import InputError
from tasks.messages import say
from tasks.reports import html, markdown
from tasks.table.collect import Run, Section, collect, find_table, read_runs
from tasks.table.plots import intervals, learning_curves
from tasks.table.spec import Table, Tree, differences, inside, text

DIGITS = {"test": 5, "test_low": 5, "test_high": 5, "best_validation": 5, "minus": 5, "minus_low": 5, "minus_high": 5}


def write_table(folder: Path, known: Sequence[Table] = ()) -> None:
    """Prints the table of the runs below a folder, and writes its files.

    A slice adds to the table of its task by files of the task's name: the page shows `TASK_*.png`, with a link to the
    `TASK_*.md` beside it.

    Args:
        folder: Folder of the results.
        known: Tables of these runs; for other tasks, those that come with msssm are looked through.

    Raises:
        InputError: there is no complete run, one is damaged, or runs of one task do not belong together.
    """
    sections = []
    for task in sorted({path.parents[2].name for path in folder.glob("runs/*/*/seed*/metrics.json")}):
        if runs := read_runs(folder, task):
            sections.append(collect(find_table(folder, runs, task, known), runs))
            (folder / f"{task}.yaml").write_text(recipe(sections[-1].table, runs))
    if not sections:
        raise InputError(f"no complete run below {folder}/runs; run `make reproduce-table` first")
    for section in sections:
        intervals(folder / f"{section.table.task}.png", section)
        learning_curves(folder / f"{section.table.task}_curves.png", section)
    shown = document(sections)
    (folder / "table.md").write_text(shown)
    provenance(sections).to_csv(folder / "table.csv", index=False)
    (folder / "table.html").write_text(page(sections, folder))
    print(shown)
    say(f"{folder / 'table.html'} has it with plots, table.csv every run; msssm compare ROW ROW tells two rows apart")


def recipe(table: Table, runs: Sequence[Run]) -> str:
    """One table with the recipes of all runs: all options of one row, and in which of them the others differ."""
    recipes = {run.row: _unplaced(run.recipe) for run in runs}
    order = sorted(recipes, key=[*table.rows, *recipes].index)
    first = min(order, key=lambda name: sum(len(str(differences(recipes[name], other))) for other in recipes.values()))
    rows: Tree = {}
    for name in order:
        label = table.rows[name].label if name in table.rows else name
        rows[name] = {"label": label, "options": differences(recipes[first], recipes[name])}
    about = f"# The recipe of each run in table.csv: all options of {first}, and in which of them others differ.\n"
    return about + text({"base": recipes[first], "rows": rows})


def _unplaced(recipe: Tree) -> Tree:
    """A resolved recipe without its seed and its place."""
    kept: Tree = {key: recipe[key] for key in ("model", "data", "trainer", "checkpoint") if key in recipe}
    kept["trainer"] = _without(kept.get("trainer", {}), "callbacks")
    kept["checkpoint"] = _without(kept.get("checkpoint", {}), "dirpath")
    kept["data"] = _without(kept["data"], "init_args") | {"init_args": _without(inside(kept["data"]), "root", "source")}
    if "shuffle_seed" in inside(kept["data"]):
        inside(kept["data"])["shuffle_seed"] = "${seed_everything}"
    return kept


def _without(node: Tree, *names: str) -> Tree:
    return {key: value for key, value in node.items() if key not in names}


def provenance(sections: Sequence[Section]) -> pd.DataFrame:
    """A line per run, with everything needed to repeat it."""
    runs = pd.concat([section.runs for section in sections], ignore_index=True)
    runs = runs.round({**DIGITS, "train_seconds": 1, "cpu_seconds": 0})
    return runs.assign(
        cpu_seconds=runs.cpu_seconds.astype("Int64"), config=runs.task + ".yaml", folder=runs.folder.map(_run_folder)
    )


def _run_folder(folder: str) -> str:
    return Path(*Path(folder).parts[-4:]).as_posix()


def document(sections: Sequence[Section]) -> str:
    """Formats an overview if there are several tasks, then a section for each."""
    parts = []
    if len(sections) > 1:
        parts = ["# All tasks: mean over seeds and 95 % interval", "", *markdown.table(overview(sections)), ""]
    for section in sections:
        title = f"# {section.title}" + (": ours beside the paper's" if _has_paper(section) else "")
        parts += [title, "", *about(section), "", *markdown.table(cells(section)), "", *remarks(section), ""]
    return "\n".join(parts)


def overview(sections: Sequence[Section]) -> list[list[str]]:
    """Header and rows of the overview: each model's number and interval for every task."""
    columns = {
        f"{section.title}: {section.column.measure}": {
            row.label: f"{section.column.show(row.mean)} ({_between(section, row.low, row.high)})"
            for row in section.lines
        }
        for section in sections
    }
    labels = list(dict.fromkeys(label for section in sections for label in section.runs.label))
    return [["model", *columns], *([label, *(each.get(label, "") for each in columns.values())] for label in labels)]


def cells(section: Section) -> list[list[str]]:
    """Header and rows of a section, then the bound of a trivial answer."""
    column, lines = section.column, []
    for row in section.lines:
        line = {
            "model": row.label,
            f"ours: {_measure(section, section.title)}": column.show(row.mean),
            "95 % interval": _between(section, row.low, row.high),
            f"minus {section.compare}": _signed(section, row.minus),
            "its 95 % interval": _between(section, row.minus_low, row.minus_high, signed=True),
            "min .. max": _between(section, row.least, row.most) if row.seeds > 1 else "",
            "seeds": str(row.seeds),
            "parameters": f"{row.parameters:,}",
            "training, CPU s" if section.clock == "cpu_seconds" else "training, s": f"{row.seconds:.0f}",
            f"paper: {_measure(section, section.text('paper'))}": row.paper,
        }
        if not section.compare:
            del line[f"minus {section.compare}"], line["its 95 % interval"]
        if not _has_paper(section):
            del line[f"paper: {_measure(section, section.text('paper'))}"]
        lines.append(line)
    header = list(lines[0])
    bounds = [[f"{name} (bound)", shown, *[""] * (len(header) - 2)] for name, shown in section.bounds().items()]
    return [header, *(list(line.values()) for line in lines), *bounds]


def about(section: Section) -> list[str]:
    """Two lines on data and training of a section."""
    run = section.first
    samples = " / ".join(f"{count:,}" for count in run.counts.values())
    size = run.data.get("batch_size")
    steps = f"{run.metrics['steps']:,} steps" + (f" of {size} samples" if size else "")
    data = [f"{samples} samples", section.text("about"), f"digest {run.metrics['data']['digest'][:12]}"]
    return [
        f"Data: {', '.join(filter(None, data))}.",
        f"Training: {section.text('training') or steps}; tested once, at the best validation.",
    ]


def remarks(section: Section) -> list[str]:
    """Lines that explain a section's numbers."""
    one = (
        f"{section.column.over} where there is one seed (another seed may differ by more), "
        if section.column.over
        else ""
    )
    lines = [f"Interval: 95 %, {one}over seeds (Student) where there are several."]
    if section.other and _has_paper(section):
        lines[0] += f" The paper's column is of other {section.other}: not comparable in value."
    if section.compare:
        lines.append(
            f"Minus {section.compare}: the row less that one, paired over the same test samples (bootstrap), or by "
            "seed (Student) where there are several seeds."
        )
    if section.quoted:
        quoted = "; ".join(f"{label} {number}" for label, number in section.quoted.items())
        lines.append(f"Only quoted, on {section.text('paper')}: {quoted}.")
    runs = section.runs
    processors = runs.processor + ", " + runs.threads.astype(str) + " thread(s) per run"
    hardware = sorted(set(runs.gpus.where(runs.gpus != "", processors)))
    commits = {
        (commit[:12] or "no commit") + (" with uncommitted changes" if dirty else "")
        for joined, dirty in zip(runs.commit, runs.dirty, strict=True)
        for commit in joined.split(" + ")
    }
    made = [f"Commit {', '.join(sorted(commits))}", f"torch {', '.join(sorted(set(runs.torch)))}", ", ".join(hardware)]
    lines.append(f"{'; '.join(made)}. Each run's provenance is in table.csv.")
    if section.missing:
        lines.append(f"Partial table, not yet run: {'; '.join(section.missing)}.")
    return lines


def page(sections: Sequence[Section], folder: Path) -> str:
    """Formats a page that opens from disk: the tables, the pictures of each task in the folder, and the runs."""
    parts = ["<h1>msssm: ours beside the paper's</h1>"]
    parts += [html.table(overview(sections))] if len(sections) > 1 else []
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        task = section.table.task
        parts.append(html.image(folder / f"{task}.png", task))
        parts += [f"<p>{escape(line)}</p>" for line in _on_page(section)]
        header, *lines = cells(section)
        # What is reduced, and which data are meant, stands above the table.
        parts.append(html.table([[_short(section, head) for head in header], *lines]))
        for path in sorted(folder.glob(f"{task}_*.png")):
            parts.append(f"<figure>{html.image(path, path.stem)}</figure>")
            if (numbers := path.with_suffix(".md")).exists():
                parts.append(f"<p>Its numbers: <a href='{escape(numbers.name)}'>{escape(numbers.name)}</a></p>")
        parts += [f"<p>{escape(line)}</p>" for line in remarks(section)]
    runs = provenance(sections)
    parts += [
        "<h2>Runs</h2>",
        "<details><summary>every run, as in table.csv</summary>",
        html.table([list(runs.columns), *runs.astype(object).where(runs.notna(), "").astype(str).to_numpy().tolist()]),
        "</details>",
    ]
    return html.page("msssm: results", parts)


def _on_page(section: Section) -> list[str]:
    ours = f"Ours: {section.column.name} on {section.title}."
    return [ours + (f" Paper: on {section.text('paper')}." if _has_paper(section) else ""), *about(section)]


def _short(section: Section, head: str) -> str:
    """A heading without the data."""
    whose, colon, _ = head.partition(": ")
    unit = f", {section.column.unit}" if section.column.unit else ""
    return f"{whose}{unit}" if colon else head


def _has_paper(section: Section) -> bool:
    return bool((section.rows.paper != "").any())


def _measure(section: Section, data: str) -> str:
    unit = f", {section.column.unit}" if section.column.unit else ""
    return f"{section.column.name} on {data}{unit}"


def _between(section: Section, low: float, high: float, *, signed: bool = False) -> str:
    if pd.isna(low):
        return ""
    show = _signed if signed else lambda section, value: section.column.show(value)
    return f"{show(section, low)} .. {show(section, high)}"


def _signed(section: Section, value: float) -> str:
    return "" if pd.isna(value) else ("+" if value > 0 else "") + section.column.show(value)
