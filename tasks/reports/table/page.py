"""table.html: the tables, the plots and each run's provenance on one page that opens from disk."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tasks.reports.table.markdown import about, cells, header, overview_cells, remarks
from tasks.reports.table.provenance import lines
from tasks.reports.table.rows import Section

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #888; font-weight: 600; max-width: 11rem; }
figure { display: inline-block; width: 49%; margin: 0; vertical-align: top; }
img { width: 100%; }
details { margin: .2rem 0; } dl { display: grid; grid-template-columns: 10rem auto; margin: .3rem 0 .8rem 1rem; }
dt { color: #666; } dd { margin: 0; overflow-wrap: anywhere; }
"""


def page(sections: Sequence[Section], plots: dict[str, list[Path]]) -> str:
    """HTML that holds the pictures of each task, `plots`, and links the tables of the same name beside them."""
    parts = [_table(overview_cells(sections))] if len(sections) > 1 else []
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2>")
        parts += [f"<p>{escape(line)}</p>" for line in about(section)]
        parts.append(_table([header(section), *cells(section)]))
        for path in plots[section.subject.task]:
            parts.append(_figure(path))
            if (table := path.with_suffix(".md")).exists():
                parts.append(f"<p>Its numbers: <a href='{escape(table.name)}'>{escape(table.name)}</a></p>")
        parts += [f"<p>{escape(line)}</p>" for line in remarks(section)]
    runs = "\n".join(
        f"<details><summary>{escape(str(line['config']))}: {escape(str(line['test']))}</summary><dl>"
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in line.items())
        + "</dl></details>"
        for line in lines(sections)
    )
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>msssm: results</title>"
        f"<style>{STYLE}</style></head>\n<body><h1>msssm: ours beside the paper's</h1>\n"
        + "\n".join(parts)
        + f"\n<h2>Runs</h2>\n{runs}\n</body></html>\n"
    )


def _table(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body]
    return "<table>" + "\n".join(lines) + "</table>"


def _figure(path: Path) -> str:
    data = b64encode(path.read_bytes()).decode()
    return f"<figure><img alt='{escape(path.stem)}' src='data:image/png;base64,{data}'></figure>"
