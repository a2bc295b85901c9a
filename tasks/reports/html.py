"""Pages that carry their pictures: no other file, script or address is needed to read one."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --text: #222; --quiet: #666; --line: #ddd; --page: #fff; --alarm: #b00020; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --quiet: #a5a5a5; --line: #444; --page: #1b1c1e; --alarm: #ff8a80; }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
body { color: var(--text); background: var(--page); }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom; }
td { white-space: nowrap; } th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid var(--quiet); font-weight: 600; max-width: 11rem; min-width: 4rem; cursor: pointer; }
img { max-width: 100%; background: #fff; } .alarm { color: var(--alarm); } .scroll { overflow-x: auto; }
figure { display: inline-block; width: 49%; margin: 0; vertical-align: top; }
@media (max-width: 48rem) {
  figure { width: 100%; } img { width: 40rem; max-width: none; } dl { grid-template-columns: 6rem auto; }
  th { min-width: 6rem; } td:first-child { white-space: normal; min-width: 8rem; }
}
@media print {
  @page { size: A4; margin: 10mm; }
  body { font-size: 10px; max-width: none; margin: 0; padding: 0; color: #000; background: #fff; }
  h1 { font-size: 16px; margin: 0; } p, ul, table { margin: .3rem 0; } th, td { padding: .1rem .5rem; }
  img { width: 100%; }
}
details { margin: .2rem 0; } summary { overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: 10rem auto; margin: .3rem 0 .8rem 1rem; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
"""

# A column is sorted by a click on its head: as numbers where they are, else as text.
SORT = """<script>
document.querySelectorAll("th").forEach(head => head.onclick = () => {
  const body = head.closest("tbody"), rows = [...body.rows].slice(1);
  const up = head.dataset.up = head.dataset.up === "1" ? -1 : 1;
  const column = head.cellIndex;
  const text = row => row.cells[column].innerText, number = row => parseFloat(text(row));
  const compare = (a, b) => number(a) - number(b) || text(a).localeCompare(text(b));
  rows.sort((a, b) => up * compare(a, b)).forEach(row => body.append(row));
});
</script>"""


def page(title: str, parts: Sequence[str]) -> str:
    """Joins parts of a body to a page."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head>",
            *("<body>", *parts, SORT, "</body></html>\n"),
        ]
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows of text, the first of which is the header; scrolls where the page is narrower."""
    lines = []
    for row, tag in zip(rows, ["th", *["td"] * len(rows)], strict=False):
        lines.append("<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return '<div class="scroll"><table>' + "\n".join(lines) + "</table></div>"


def image(path: Path, title: str) -> str:
    """Embeds a PNG file; on a phone it keeps a width at which it can be read, and scrolls."""
    data = b64encode(path.read_bytes()).decode()
    return f'<div class="scroll"><img alt="{escape(title)}" src="data:image/png;base64,{data}"></div>'
