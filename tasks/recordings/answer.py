"""What a model says about recordings, printed and written: a table, .json, .csv and a picture on ECG paper."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from datamodules.errors import InputError as DataError
from datamodules.ptbxl.recording import FillMissing, Implausible, Recording, find_recordings, read_recording
from datamodules.ptbxl.typical import age_in_header, unlike
from msssm.errors import InputError
from tasks.paths import make_folder
from tasks.recordings.inference import offline, standardised, stream
from tasks.recordings.model import Answers, ClassAnswer, ECGModel
from tasks.reports.ecg_paper import RESEARCH, ecg_figure

LISTED, SHOWN = 0.05, 5  # the table has the classes of at least this probability, and at least so many


@dataclass(frozen=True)
class RecordingOptions:
    """How recordings are read, and what is made of them.

    Attributes:
        sampling_rate: as `given_rate` of `read_recording`, which has the next three too.
        leads: its `given_leads`.
        fill_missing: likewise.
        implausible: likewise.
        stream: also feed the recording sample by sample.
        output: folder.
    """

    sampling_rate: float | None
    leads: list[str] | None
    fill_missing: FillMissing
    implausible: Implausible
    stream: bool
    output: Path


@dataclass(frozen=True)
class _Finding:
    """A class and its probability."""

    known: ClassAnswer
    probability: float

    @property
    def said(self) -> bool:
        """Whether it reaches its threshold."""
        return self.known.threshold is not None and self.probability >= self.known.threshold

    @property
    def title(self) -> str:
        name, description = self.known.name, self.known.description
        return name if description == name else f"{name}  {description}"


def answer(model: ECGModel, sources: Sequence[Path], options: RecordingOptions) -> None:
    """Prints a table per recording; writes <output>/<recording>.json and .png, and predictions.csv over all.

    Args:
        model: what answers.
        sources: recordings, or folders of them.
        options: how they are read.

    Raises:
        ValueError: recordings that cannot be used; the others are answered first.
        FileNotFoundError: no such recording; nothing is answered.
    """
    files = named_recordings(sources)
    rows: dict[str, list[float]] = {}
    failures = []
    for name, file in files.items():
        try:
            rows[name] = _answer_one(model, file, name, options)
        except (InputError, DataError) as error:
            failures.append(str(error))
    if rows:
        _write_csv(options.output / "predictions.csv", [each.name for each in model.answers.classes], rows)
        print("\n".join([*_how(model), f"  {RESEARCH}", f"written to {options.output}"]))
    if failures:
        more = f"; {len(rows)} of {len(files)} recordings were predicted" if len(files) > 1 else ""
        raise InputError("\n".join(failures) + more)


def named_recordings(sources: Sequence[Path]) -> dict[str, Path]:
    """The recordings of all sources, each once, by the names of the outputs.

    A name is the path within its folder, or from what all have in common where two would be alike; with the ending
    only where two recordings differ in nothing else.
    """
    inside: dict[Path, Path] = {}
    for source in sources:
        for file in find_recordings(source):
            inside.setdefault(file, file.relative_to(source) if source.is_dir() else Path(file.name))
    if len(set(inside.values())) < len(inside):
        common = os.path.commonpath([file.absolute().parent for file in inside])
        inside = {file: file.absolute().relative_to(common) for file in inside}
    bare = {file: str(Path(str(path).removesuffix(".gz")).with_suffix("")) for file, path in inside.items()}
    twice = [name for name in bare.values() if list(bare.values()).count(name) > 1]
    return {str(inside[file]) if name in twice else name: file for file, name in bare.items()}


def _answer_one(model: ECGModel, file: Path, name: str, options: RecordingOptions) -> list[float]:
    """Probabilities (K,) of one recording, told and written."""
    answers = model.answers
    recording = read_recording(
        file,
        answers.sampling_rate,
        given_rate=options.sampling_rate,
        given_leads=options.leads,
        fill_missing=options.fill_missing,
        implausible=options.implausible,
    )
    x = standardised(recording, answers.mean, answers.std)
    windows = len(answers.windows.starts(len(x))[1])
    different = unlike(recording, answers.typical, age_in_header(file)) if answers.typical else []
    logits = offline(model.network, x, answers.windows)
    if options.stream:
        _print_stream(model, x, recording, logits)
    probabilities = answers.probabilities(logits)
    findings = [_Finding(*each) for each in zip(answers.classes, probabilities, strict=True)]
    findings.sort(key=lambda finding: (not finding.said, -finding.probability))
    seconds = len(x) / recording.sampling_rate
    about = [
        f"{seconds:.1f} s at {recording.sampling_rate} Hz",
        *(f"unlike PTB-XL: {each}" for each in different),
        *recording.notes,
    ]
    print("\n".join([f"{name}: " + "\n  ".join(about), *_table(findings, answers), ""]))
    content = {
        "recording": str(file),
        "model": model.name,
        "label_set": answers.label_set,
        "seconds": seconds,
        "original_rate": recording.original_rate,
        "sampling_rate": recording.sampling_rate,
        "notes": recording.notes,
        "unlike_ptbxl": different,
        "windows": windows,
        "aggregation": answers.windows.aggregation,
        "probabilities": {each.known.name: each.probability for each in findings},
        "logits": {each.name: value for each, value in zip(answers.classes, logits.tolist(), strict=True)},
        "warning": RESEARCH,
    }
    if answers.validation:
        content |= {
            "above_threshold": [each.known.name for each in findings if each.said],
            "thresholds": {each.name: each.threshold for each in answers.classes},
            "calibration": {"validation": answers.validation, "test": answers.test},
        }
    path = options.output / name
    make_folder(path.parent)
    Path(f"{path}.json").write_text(json.dumps(content, indent=2) + "\n")
    drawn = [(f"{each.title}  (at least {each.known.threshold:.2f})" if each.said else each.title, each.probability) for each in findings]
    ecg_figure(recording.signal, recording.sampling_rate, name, about, drawn).savefig(f"{path}.png", dpi=200)
    return probabilities


def _table(findings: Sequence[_Finding], answers: Answers) -> Iterator[str]:
    """Those that reach their thresholds, and the most probable others; the rest is counted only."""
    said = sum(each.said for each in findings)
    shown = max(SHOWN, said + sum(each.probability >= LISTED for each in findings[said:]))
    for each in findings[:shown]:
        line = ""
        if answers.validation:
            threshold = each.known.threshold
            line = f"{'':12}" if threshold is None else f"{'above' if each.said else 'below'} {threshold:.3f} "
        yield f"  {each.probability:6.3f}  {'#' * round(20 * each.probability):20}  {line}{each.title}"
    if rest := findings[shown:]:
        yield f"  {len(rest)} other classes below {max(each.probability for each in rest):.3f}"


def _how(model: ECGModel) -> list[str]:
    """What the numbers mean, of a model that was judged."""
    answers = model.answers
    if not answers.validation:
        return []
    with_threshold = sum(each.threshold is not None for each in answers.classes)
    test = answers.test
    return [
        f"model {model.name}: probabilities are calibrated, and a threshold has the best F1 of its class, on PTB-XL's "
        f"fold 9; {len(answers.classes) - with_threshold} of {len(answers.classes)} classes have too few positives "
        "there for one",
        f"  on fold 10, once: macro AUROC {test['auroc']:.3f}, calibration error {test['calibration_error'][1]:.4f} "
        f"({test['calibration_error'][0]:.4f} before)",
    ]


def _print_stream(model: ECGModel, x: Tensor, recording: Recording, expected: Tensor) -> None:
    answers, rate = model.answers, recording.sampling_rate
    print(f"{recording.name}: the file is read (and resampled) whole, then fed sample by sample at {rate} Hz")
    for t, logits in enumerate(stream(model.network, x, answers.windows), start=1):
        if t % rate == 0 or t == len(x):
            values, order = torch.tensor(answers.probabilities(logits)).topk(min(SHOWN, len(logits)))
            best = "  ".join(
                f"{answers.classes[k].name} {p:.3f}" for k, p in zip(order.tolist(), values.tolist(), strict=True)
            )
            print(f"  {t / rate:7.2f} s  {best}", flush=True)
    print(f"  the whole recording at once differs by {(logits - expected).abs().max().item():.1e} in the logits")


def _write_csv(path: Path, classes: list[str], rows: dict[str, list[float]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["recording", *classes])
        writer.writerows([name, *(f"{p:.6f}" for p in row)] for name, row in rows.items())
