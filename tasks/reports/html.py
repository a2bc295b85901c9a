"""Pages that carry their pictures: no other file, script or address is needed to read one."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #888; font-weight: 600; max-width: 11rem; }
img { max-width: 100%; } .alarm { color: #b00020; } .scroll { overflow-x: auto; }
figure { display: inline-block; width: 49%; margin: 0; vertical-align: top; }
details { margin: .2rem 0; } dl { display: grid; grid-template-columns: 10rem auto; margin: .3rem 0 .8rem 1rem; }
dt { color: #666; } dd { margin: 0; overflow-wrap: anywhere; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """Joins parts of a body to a page."""
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head>',
            *("<body>", *parts, "</body></html>\n"),
        ]
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows of text, the first of which is the header."""
    lines = []
    for row, tag in zip(rows, ["th", *["td"] * len(rows)], strict=False):
        lines.append("<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def image(path: Path, title: str) -> str:
    """Embeds a PNG file."""
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{b64encode(path.read_bytes()).decode()}">'
