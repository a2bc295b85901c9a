"""Pages for a browser and for paper: one for each recording, and one that lists them all."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

from tasks.ecg.paper import RESEARCH
from tasks.ecg.recordings.findings import Answer, Finding, meaning, shown
from tasks.ecg.recordings.model import ECGModel
from tasks.reports import html


def recording_page(answer: Answer, model: ECGModel, picture: Path) -> str:
    """The page of a recording, which carries its picture and prints on one sheet."""
    head, *others = answer.about
    alarms = "".join(f"<li>{escape(line)}</li>" for line in others)
    rows = [["statement", "", "probability", "threshold", "precision"]]
    rows += [_row(each, bool(model.answers.validation)) for each in answer.findings[: shown(answer.findings)]]
    rest = len(answer.findings) - len(rows) + 1
    return html.page(
        answer.name,
        [
            f"<h1>{escape(answer.name)}</h1>",
            f"<p>{escape(head)}</p>",
            f'<p class="alarm"><strong>{escape(RESEARCH)}</strong></p>',
            html.image(picture, f"12 leads of {answer.name}"),
            html.table(rows),
            f"<p>{rest} other statements are less probable.</p>" if rest else "",
            f"<ul>{alarms}</ul>" if alarms else "",
            *(f"<p>{escape(line)}</p>" for line in meaning(model)),
        ],
    )


def _row(finding: Finding, judged: bool) -> list[str]:
    known = finding.known
    threshold = "none" if judged and known.threshold is None else _number(known.threshold)
    name = f"{known.name} {finding.mark}".strip()
    return [name, known.description, f"{finding.probability:.3f}", threshold, _number(known.test.get("precision"))]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def index_page(answers: Mapping[str, Answer], model: ECGModel) -> str:
    """The page of a folder: a line for each recording, with a link; a click on a head sorts."""
    lines = []
    for name, each in answers.items():
        found = [finding for finding in each.findings if finding.reached] or each.findings[:1]
        cells = [
            f'<a href="{quote(name)}.html">{escape(name)}</a>',
            escape(", ".join(finding.known.name for finding in found)),
            f"{found[0].probability:.3f}" if found else "",
            "".join(f"{m.value:.0f}" for m in each.measurements if m.name == "heart rate" and m.value is not None),
            str(len(each.conflicts)),
            str(len(each.unlike)),
        ]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = ["recording", "statements", "probability of the first", "heart rate, /min", "conflicts", "unlike PTB-XL"]
    head = "<tr>" + "".join(f"<th>{text}</th>" for text in heads) + "</tr>"
    return html.page(
        f"{len(answers)} recordings",
        [
            f"<h1>{len(answers)} recordings</h1>",
            f'<p class="alarm"><strong>{escape(RESEARCH)}</strong></p>',
            f'<div class="scroll"><table><tbody>{head}{"".join(lines)}</tbody></table></div>',
            *(f"<p>{escape(line)}</p>" for line in meaning(model)),
        ],
    )
