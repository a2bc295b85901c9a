"""Draws the figures of the docs: `python docs/figures.py` writes architecture.svg and scan.svg beside itself.

The curves are computed: the bands are a Haar decomposition of the drawn input, and each band's curve is what its state
space model remembers of an impulse.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVELS = 3
# Steps that a band remembers at the start, finest first: docs/choices.md, 16 states per band.
MEMORY = (4.0, 4.5, 5.7, 10.5, 45.9)
# Okabe and Ito's colours, which colour-blind readers tell apart; on dark ground the two darkest are lightened.
STYLE = """
  text { font: 14px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 16px } .small { font-size: 12px; fill: #57606a } .math { font-style: italic }
  .box { fill: #f6f8fa; stroke: #8c959f; stroke-width: 1.2 } .line { fill: none; stroke: #57606a; stroke-width: 1.5 }
  .dash { fill: none; stroke: #57606a; stroke-width: 1.3; stroke-dasharray: 5 4 } .head { fill: #57606a }
  .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round } .ink { stroke: #1f2328 } .dot { fill: #1f2328 }
  .s0 { stroke: #0072b2 } .s1 { stroke: #009e73 } .s2 { stroke: #c77700 }
  .s3 { stroke: #d55e00 } .s4 { stroke: #b14f8f }
  .kept { fill: #0072b2 } .again { fill: #c77700 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #a5afb9 } .box { fill: #21262d; stroke: #6e7681 }
    .line, .dash { stroke: #a5afb9 } .head { fill: #a5afb9 } .ink { stroke: #e6edf3 } .dot { fill: #e6edf3 }
    .s0 { stroke: #56b4e9 } .s1 { stroke: #2fc79a } .s2 { stroke: #e69f00 } .s3 { stroke: #ff7f3f }
    .s4 { stroke: #dd94bf } .kept { fill: #56b4e9 } .again { fill: #e69f00 }
  }"""


def document(width: int, height: int, title: str, description: str, parts: list[str]) -> str:
    """A whole SVG file. Its colours follow the reader's light or dark mode; `description` is for screen readers."""
    arrow = (
        '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0 0 8 4 0 8z"/></marker>'
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            f"<title>{title}</title><desc>{description}</desc>",
            f"<style>{STYLE}\n</style><defs>{arrow}</defs>",
            *parts,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    """One line of text; `kind` is its classes of the style sheet."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{words}</text>'


def box(x: float, y: float, width: float, height: float) -> str:
    """A rounded box, by its upper left corner."""
    return f'<rect class="box" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>'


def path(points: str, kind: str = "line", arrow: bool = True) -> str:
    """A line through `points`, in SVG's path language."""
    return f'<path class="{kind}" d="{points}"{" marker-end=" + chr(34) + "url(#arrow)" + chr(34) if arrow else ""}/>'


def circle(x: float, y: float, radius: float, kind: str) -> str:
    """A disc."""
    return f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="{radius:g}"/>'


def curve(values: Floats, x: float, y: float, width: float, height: float, kind: str) -> str:
    """Values in -1..1, drawn around the line y over `height` in all."""
    xs = np.linspace(x, x + width, len(values))
    points = " ".join(f"{a:.1f},{y - height / 2 * v:.1f}" for a, v in zip(xs, values, strict=True))
    return f'<polyline class="curve {kind}" points="{points}"/>'


def signal() -> Floats:
    """A slow wave, a faster one, and two clicks."""
    t = np.linspace(0, 1, 64)
    x = 0.55 * np.sin(2 * np.pi * 1.3 * t) + 0.25 * np.sin(2 * np.pi * 9 * t)
    x[20] += 0.55
    x[45] -= 0.5
    return x


def haar_bands(x: Floats) -> list[Floats]:
    """The input, the details d^1 .. d^S and the approximation a^S, causal and of the input's length."""
    bands, a = [x], x
    for level in range(LEVELS):
        lag = 2**level
        past = np.concatenate([np.zeros(lag), a[:-lag]])
        bands.append((a - past) / 2)
        a = (a + past) / 2
    return [*bands, a]


def taps(x: float, y: float, dilation: int) -> list[str]:
    """What a filter of four taps reads: a dot every `dilation` steps."""
    steps = range(13)
    ticks = [path(f"M{x + 8 * t:g} {y - 3:g}v6", "line", arrow=False) for t in steps]
    return [*ticks, *(circle(x + 8 * (12 - dilation * k), y, 3.4, "dot") for k in range(4))]


def architecture() -> str:
    """Input, decomposition, one state space model per band, mixer, output."""
    rows = [112 + 78 * s for s in range(LEVELS + 2)]
    names = ["x", *(f"d{s}" for s in "¹²³"), "a³"]
    first, last, middle = rows[0], rows[-1], rows[2]
    parts = [
        text(78, 40, "input", "title"),
        text(300, 40, "decomposition", "title"),
        text(300, 58, "learned filters, dilation doubles per level", "small"),
        text(630, 40, "one SSM per band", "title"),
        text(630, 58, "what each remembers of an impulse", "small"),
        text(850, 40, "scale mixer", "title"),
        text(850, 58, "new weights at each step", "small"),
        text(946, middle - 18, "output", "title"),
        # What reads the input itself.
        path(f"M78 {first - 26}V82H800", "dash", arrow=False),
        text(462, 77, "Δ, B, C = Linear(x)", "small math"),
        text(757, 77, "E = Linear(x)", "small math"),
        path(f"M645 82V{last - 26}", "dash", arrow=False),
        path(f"M800 82V{last - 14}", "dash", arrow=False),
        box(18, first - 26, 120, 52),
        curve(signal(), 26, first, 104, 44, "s0"),
        text(78, first + 44, "x: (B, L, D)", "small"),
        path(f"M138 {first}H404"),
        # The cascade: each low-pass goes on to the next level.
        path(f"M190 {first}V{rows[1] - 27}"),
        path(f"M190 {rows[LEVELS] + 26}V{last}H404"),
        text(182, first + 28, "a⁰ = x", "small math", "end"),
        text(182, last - 26, "a³", "small math", "end"),
    ]
    for level in range(1, LEVELS + 1):
        y = rows[level]
        parts += [
            box(158, y - 26, 170, 52),
            text(243, y - 8, f"level {level}, dilation {2 ** (level - 1)}", "small"),
            *taps(195, y + 10, 2 ** (level - 1)),
            path(f"M328 {y}H404"),
            text(364, y - 7, "high", "small"),
        ]
        if level < LEVELS:
            parts += [path(f"M190 {y + 26}V{rows[level + 1] - 27}"), text(198, y + 43, "low", "small", "start")]
    parts.append(text(198, rows[LEVELS] + 43, "low", "small", "start"))
    steps = np.arange(60)
    for s, (y, band) in enumerate(zip(rows, haar_bands(signal()), strict=True)):
        parts += [
            box(406, y - 26, 124, 52),
            curve(band / max(1.0, np.abs(band).max()), 414, y, 108, 44, f"s{s}"),
            text(468, y + 41, names[s], "small math"),
            path(f"M530 {y}H578"),
            box(580, y - 26, 130, 52),
            curve(2 * np.exp(-steps / MEMORY[s]) - 1, 590, y, 110, 36, f"s{s}"),
            text(652, y + 41, f"≈ {MEMORY[s]:.2g} steps", "small", "start"),
            path(f"M710 {y}H786"),
            text(746, y - 7, f"y{'⁰¹²³⁴'[s]}", "small math"),
            f'<circle class="box" cx="800" cy="{y}" r="13"/>',
            text(800, y + 5, "\u00d7"),
            path(f"M813 {y}H840L866 {middle + 6 * (s - 2)}"),
        ]
    parts += [
        f'<circle class="box" cx="886" cy="{middle}" r="20"/>',
        text(886, middle + 6, "Σ", "title"),
        path(f"M906 {middle}H982"),
        text(946, middle + 24, "z: (B, L, D)", "small"),
    ]
    return document(
        1000,
        last + 62,
        "The multi-scale state space model",
        "The input is split by a cascade of learned causal filters, whose dilation doubles from level to level, into "
        "bands. Each band has a state space model of its own, fast for fine bands and slow for coarse ones. A mixer "
        "whose weights depend on the input sums the bands at every step.",
        parts,
    )


def scan() -> str:
    """What a scan keeps between forward and backward, and what the backward computes again."""
    left, tile, tiles, per_segment = 150, 52, 12, 4
    width = tile * tiles
    forward, backward = 96, 220
    parts = [
        text(left, 40, "forward: one pass over the steps, states in registers", "title", "start"),
        text(left, 176, "backward: segment by segment, last to first", "title", "start"),
        text(left - 16, forward + 4, "h", "math", "end"),
        text(left - 16, backward + 4, "h again, then dh", "math", "end"),
    ]
    for row in (forward, backward):
        parts += [box(left + tile * i, row - 18, tile, 36) for i in range(tiles)]
    parts += [
        path(f"M{left + 6} {forward}H{left + width + 22}"),
        text(left, forward - 28, "tiles of 32 steps; the outputs are written, the states are not", "small", "start"),
    ]
    for segment in range(0, tiles, per_segment):
        x = left + tile * segment
        parts += [circle(x, forward, 7, "kept"), circle(x, backward, 7, "kept")]
    last = left + tile * (tiles - per_segment)
    for i in range(1, per_segment):
        parts.append(circle(last + tile * i, backward, 5, "again"))
    parts += [
        path(f"M{last + 4} {backward + 30}H{left + width - tile}"),
        text(last + tile * 1.5, backward + 48, "1. advance to each tile", "small"),
        path(f"M{left + width} {backward + 62}H{last + 4}"),
        text(left + width, backward + 80, "2. walk back, a tile's states in the nearest cache", "small", "end"),
        circle(left + 8, backward + 42, 7, "kept"),
        text(left + 24, backward + 46, "kept by the forward: (B, M, N, D) per segment", "small", "start"),
        circle(left + 8, backward + 66, 5, "again"),
        text(left + 24, backward + 70, "computed again, one segment at a time", "small", "start"),
    ]
    return document(
        left + width + 40,
        backward + 96,
        "What a selective scan keeps",
        "The forward runs once over the steps and keeps the states only before each segment of tiles. The backward "
        "starts from the last kept state, advances to the states before each tile of the segment, then walks back over "
        "the tiles, and goes on with the segment before.",
        parts,
    )


FIGURES = {"architecture.svg": architecture, "scan.svg": scan}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        Path(__file__).with_name(name).write_text(draw())
