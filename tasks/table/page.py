"""table.html: the tables, the plots and each run's provenance on one page that opens from disk."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from tasks.reports import html
from tasks.table.markdown import about, cells, header, overview_cells, remarks
from tasks.table.provenance import lines
from tasks.table.rows import Section


def page(sections: Sequence[Section], plots: dict[str, list[Path]]) -> str:
    """Formats a page with the pictures of each task, `plots`, and links to the tables of the same name beside them."""
    parts = [html.table(overview_cells(sections))] if len(sections) > 1 else []
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts += [f"<p>{escape(line)}</p>" for line in about(section)]
        parts.append(html.table([header(section), *cells(section)]))
        for path in plots[section.benchmark.task]:
            parts.append(f"<figure>{html.image(path, path.stem)}</figure>")
            if (table := path.with_suffix(".md")).exists():
                parts.append(f"<p>Its numbers: <a href='{escape(table.name)}'>{escape(table.name)}</a></p>")
        parts += [f"<p>{escape(line)}</p>" for line in remarks(section)]
    runs = "\n".join(
        f"<details><summary>{escape(str(line['config']))}: {escape(str(line['test']))}</summary><dl>"
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in line.items())
        + "</dl></details>"
        for line in lines(sections)
    )
    title = "<h1>msssm: ours beside the paper's</h1>"
    return html.page("msssm: results", [title, *parts, f"<h2>Runs</h2>\n{runs}"])
