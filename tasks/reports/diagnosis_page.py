"""One page that carries its pictures: no other file, script or address is needed to read it."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

_STYLE = """body { font: 15px/1.45 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
img { max-width: 100% } table { border-collapse: collapse; font-size: 13px }
th, td { padding: .15rem .6rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
.alarm { color: #b00020 } .scroll { overflow-x: auto }"""

_NOTES = {
    "Effective memory": "Left: mean over channels and modes of 1 / (1 - |Abar|), at the step sizes of a zero input. "
    "Right: sum |h| / max |h| of the response of each band's model to an impulse at the first step of validation "
    "samples, with their gates and no longer than they are. For one mode exp(-t / tau) both are the same.",
    "Eigenvalues": "Where |Abar| lies per band; the recurrence contracts while all are below 1.",
    "Mixing distance": "d = sum |J| (m - n) / sum |J| at the last step m of the longest sample, J the Jacobian of one "
    "layer, mean over output channels (paper, table 6).",
    "Scale mixer": "Shares |E| / sum |E| of the bands; the paper's mixer is linear, so its weights have no sum.",
}
_COLUMNS = (
    ("mixing distance", ("mixing_distance",), "{:.1f}"),
    ("stability margin", ("stability_margin",), "{:.1e}"),
    ("bands in effect", ("mixer", "effective_bands"), "{:.2f}"),
    ("shift error", ("shift_error",), "{:.0e}"),
    ("padding error", ("padding_error",), "{:.0e}"),
)


def write_page(path: Path, result: dict[str, Any], plots: dict[str, Path]) -> None:
    """`result` is the content of diagnostics.json; `plots` are titles and PNG files."""
    source = result["checkpoint"] or "random start, no checkpoint"
    facts = (
        f"{result['network']}, {result['parameters']:,} parameters, {len(result['layers'])} layers; {source}. "
        f"Validation samples of {', '.join(map(str, result['lengths']))} steps. "
        f"Mean mixing distance over layers {result['mean_mixing_distance']:.1f} steps; of the whole backbone "
        f"{result['backbone']['mixing_distance']:.1f}."
    )
    found = "".join(f'<li class="alarm">{escape(alarm)}</li>' for alarm in result["alarms"])
    sections = [
        f"<h1>What the model does</h1><p>{escape(facts)}</p>",
        f"<h2>Alarms</h2>{f'<ul>{found}</ul>' if found else '<p>None.</p>'}",
        *(f"<h2>{title}</h2><p>{_NOTES[title]}</p>{_image(plot, title)}" for title, plot in plots.items()),
        f'<h2>Layers</h2><div class="scroll">{_table(result["layers"])}</div>',
    ]
    page = "\n".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>msssm diagnose</title>',
            f"<style>{_STYLE}</style></head><body>",
            *sections,
            "</body></html>",
        )
    )
    path.write_text(page, encoding="utf-8")


def _image(path: Path, title: str) -> str:
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{b64encode(path.read_bytes()).decode()}">'


def _table(layers: Sequence[dict[str, Any]]) -> str:
    header = "".join(f"<th>{cell}</th>" for cell in ("layer", "kind", *(name for name, _, _ in _COLUMNS)))
    lines = []
    for layer in layers:
        cells = [escape(layer["path"]), escape(layer["layer"])]
        for _, keys, form in _COLUMNS:
            value: Any = layer
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            cells.append("" if value is None else form.format(value))
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<table><tr>{header}</tr>{''.join(lines)}</table>"
