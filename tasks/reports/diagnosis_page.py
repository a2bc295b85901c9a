"""The page of `msssm diagnose`."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from msssm.diagnostics.nan_guard import band_name
from tasks.reports import html

_NOTES = {
    "Effective memory": "Left: mean over channels and modes of 1 / (1 - |Abar|), at the step sizes of a zero input. "
    "Right: sum |h| / max |h| of the response of each band's model to an impulse at the first step of validation "
    "samples, with their Delta, B and C, and no longer than they are. For one mode exp(-t / tau) both are the same.",
    "Mixing distance": "d = sum |J| (m - n) / sum |J| at the last step m of the longest sample, J the Jacobian of one "
    "layer, mean over output channels (paper, table 6).",
    "Scale mixer": "Shares |E| / sum |E| of the bands; the paper's mixer is linear, so its weights have no sum.",
}
_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "mixing distance": lambda layer: f"{layer['mixing_distance']:.1f}",
    "stability margin": lambda layer: f"{layer['stability_margin']:.1e}" if "stability_margin" in layer else "",
    "bands in effect": lambda layer: f"{layer['mixer']['effective_bands']:.2f}" if "mixer" in layer else "",
    "shift error": lambda layer: f"{layer['shift_error']:.0e}",
    "padding error": lambda layer: f"{layer['padding_error']:.0e}",
}


_NO_ALARM = (
    "None: every recurrence contracts, no mixer has collapsed to one band or is uniform over them, and neither a shift "
    "of the input nor padding changes an output by more than rounding does."
)


def sentences(layers: list[dict[str, Any]]) -> dict[str, str]:
    """What the numbers of the layers say, in a sentence or two below each plot."""
    found = {}
    memory = np.array([layer["memory"]["measured"] for layer in layers if "memory" in layer])
    if len(memory):
        mean = memory.mean(0)
        names = _names(len(mean))
        longest, shortest = int(mean.argmax()), int(mean.argmin())
        found["Effective memory"] = f"The band {names[longest]} remembers longest, {mean[longest]:.0f} steps" + (
            f"; {names[shortest]} shortest, {mean[shortest]:.0f} (means over layers)." if len(mean) > 1 else "."
        )
    distances = [layer["mixing_distance"] for layer in layers]
    farthest = int(np.argmax(distances))
    found["Mixing distance"] = (
        f"What a layer says of the last step comes from {np.mean(distances):.0f} steps before it on average; layer "
        f"{farthest} looks back farthest, {distances[farthest]:.0f} steps."
    )
    if mixers := [layer["mixer"] for layer in layers if "mixer" in layer]:
        shares = np.mean([mixer["mean"] for mixer in mixers], axis=0)
        first, names = int(shares.argmax()), _names(len(shares))
        most = f"The band {names[first]} carries {100 * shares[first]:.0f} % of the output"
        if len(memory) and memory.shape[1] == len(shares):
            most += f", and its memory is {memory.mean(0)[first]:.0f} steps"
        effective = np.mean([mixer["effective_bands"] for mixer in mixers])
        found["Scale mixer"] = f"{most}. Of {len(shares)} bands {effective:.1f} are in effect (mean over layers)."
    return found


def _names(bands: int) -> list[str]:
    return ["single"] if bands == 1 else [f"{band} ({band_name(band, bands)})" for band in range(bands)]


def write_page(path: Path, result: dict[str, Any], plots: dict[str, Path]) -> None:
    """Writes the page of the content of diagnostics.json, `result`, with titles and PNG files of `plots`."""
    source = result["checkpoint"] or "random start, no checkpoint"
    facts = (
        f"{result['network']}, {result['parameters']:,} parameters, {len(result['layers'])} layers; {source}. "
        f"Validation samples of {', '.join(map(str, result['lengths']))} steps. "
        f"Mean mixing distance over layers {result['mean_mixing_distance']:.1f} steps; of the whole backbone "
        f"{result['backbone']['mixing_distance']:.1f}."
    )
    found = "".join(f'<li class="alarm">{escape(alarm)}</li>' for alarm in result["alarms"])
    rows = [[layer["path"], layer["layer"], *(cell(layer) for cell in _COLUMNS.values())] for layer in result["layers"]]
    said = sentences(result["layers"])
    sections = [
        f"<h1>What the model does</h1><p>{escape(facts)}</p>",
        f"<h2>Alarms</h2>{f'<ul>{found}</ul>' if found else f'<p>{_NO_ALARM}</p>'}",
        *(
            f"<h2>{title}</h2><p><strong>{escape(said[title])}</strong></p>{html.image(plot, title)}"
            f"<p>{_NOTES[title]}</p>"
            for title, plot in plots.items()
        ),
        f"<h2>Layers</h2>{html.table([['layer', 'kind', *_COLUMNS], *rows])}",
    ]
    path.write_text(html.page("msssm diagnose", sections), encoding="utf-8")
