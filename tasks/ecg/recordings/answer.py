"""A model's answer about recordings: a printed table, .json, .csv and a picture on ECG paper."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.ptbxl.recording import Recording, find_recordings, read_recording
from datamodules.ptbxl.typical import unlike
from msssm.errors import InputError
from tasks.ecg.paper import RESEARCH, ecg_figure
from tasks.ecg.recordings.inference import offline, standardised, stream
from tasks.ecg.recordings.model import Answers, ClassAnswer, ECGModel
from tasks.ecg.recordings.options import RecordingOptions
from tasks.paths import make_folder

LISTED, SHOWN = 0.05, 5  # the table has the classes of at least this probability, and at least so many


class _Finding(NamedTuple):
    """Class with its probability in one recording, and whether that reaches the class's threshold."""

    known: ClassAnswer
    probability: float
    reached: bool

    @property
    def title(self) -> str:
        name, description = self.known.name, self.known.description
        return name if description == name else f"{name}  {description}"


def answer(model: ECGModel, sources: Sequence[Path], options: RecordingOptions) -> None:
    """Prints a table per recording; writes <output>/<recording>.json and .png, and predictions.csv over all.

    Args:
        model: the model that answers.
        sources: recordings, or folders of them.
        options: how they are read.

    Raises:
        ValueError: recordings that cannot be used; the others are answered first.
        FileNotFoundError: no such recording; nothing is answered.
    """
    files = named_recordings(sources)
    rows: dict[str, list[float]] = {}
    failures = []
    try:
        for name, file in files.items():
            try:
                rows[name] = _answer_one(model, file, name, options)
            except InputError as error:
                failures.append(_printable(str(error)))
    finally:  # also of those before an interruption
        if rows:
            kept = _write_csv(options.output / "predictions.csv", [each.name for each in model.answers.classes], rows)
            print("\n".join([*_meaning(model), RESEARCH, *kept, f"written to {options.output}"]))
    if failures:
        more = f"; {len(rows)} of {len(files)} recordings were predicted" if len(files) > 1 else ""
        raise InputError("\n".join(failures) + more)


def named_recordings(sources: Sequence[Path]) -> dict[str, Path]:
    """Locates the recordings of all sources, each once, by the names of their outputs.

    A name is the path within its folder, or from the folder that all have in common where two would be alike; it has
    its suffix only where two recordings share the rest.
    """
    inside: dict[Path, Path] = {}
    for source in sources:
        for file in find_recordings(source):
            inside.setdefault(file, file.relative_to(source) if source.is_dir() else Path(file.name))
    if len(set(inside.values())) < len(inside):
        common = os.path.commonpath([file.absolute().parent for file in inside])
        inside = {file: file.absolute().relative_to(common) for file in inside}
    bare = {file: str(Path(str(path).removesuffix(".gz")).with_suffix("")) for file, path in inside.items()}
    count = Counter(bare.values())
    return {_printable(str(inside[file]) if count[name] > 1 else name): file for file, name in bare.items()}


def _printable(text: str) -> str:
    """A text with the bytes escaped that are no UTF-8, such as of a file name from an old archive."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _answer_one(model: ECGModel, file: Path, name: str, options: RecordingOptions) -> list[float]:
    """Prints and writes the answer about one recording; returns its probabilities (K,)."""
    answers = model.answers
    recording = read_recording(
        file,
        answers.sampling_rate,
        given_rate=options.sampling_rate,
        given_unit=options.unit,
        given_leads=options.leads,
        fill_missing=options.fill_missing,
        implausible=options.implausible,
    )
    x = standardised(recording, answers.mean, answers.std)
    _, starts = answers.windows.starts(len(x))
    different = unlike(recording, answers.typical) if answers.typical else []
    logits = offline(model.network, x, answers.windows)
    if options.stream:
        _print_stream(model, x, recording, logits)
    probabilities = answers.probabilities(logits)
    findings = [
        _Finding(known, p, known.threshold is not None and p >= known.threshold)
        for known, p in zip(answers.classes, probabilities, strict=True)
    ]
    findings.sort(key=lambda finding: (not finding.reached, -finding.probability))
    seconds = len(x) / recording.sampling_rate
    about = [
        f"{seconds:.1f} s at {recording.sampling_rate} Hz",
        *(f"unlike PTB-XL: {each}" for each in different),
        *recording.notes,
    ]
    print("\n".join([f"{name}: " + "\n  ".join(about), *_table(findings, answers), ""]), flush=True)
    content = {
        "recording": _printable(str(file)),
        "model": model.name,
        "label_set": answers.label_set,
        "seconds": seconds,
        "original_rate": recording.original_rate,
        "sampling_rate": recording.sampling_rate,
        "notes": recording.notes,
        "unlike_ptbxl": different,
        "windows": len(starts),
        "aggregation": answers.windows.aggregation,
        "probabilities": {each.known.name: each.probability for each in findings},
        "logits": {each.name: value for each, value in zip(answers.classes, logits.tolist(), strict=True)},
        "warning": RESEARCH,
    }
    if answers.validation:
        content |= {
            "above_threshold": [each.known.name for each in findings if each.reached],
            "thresholds": {each.name: each.threshold for each in answers.classes},
            "meaning": _meaning(model),
        }
    path = options.output / name
    make_folder(path.parent)
    Path(f"{path}.json").write_text(json.dumps(content, indent=2) + "\n")
    marked = [(f"{each.title}{' *' if each.reached else ''}", each.probability) for each in findings]
    ecg_figure(recording.signal, recording.sampling_rate, name, about, marked).savefig(f"{path}.png", dpi=200)
    return probabilities


def _table(findings: Sequence[_Finding], answers: Answers) -> Iterator[str]:
    """Formats the classes at their thresholds, then the most probable others; improbable ones are only counted."""
    shown = max(SHOWN, sum(each.reached or each.probability >= LISTED for each in findings))
    if answers.validation:
        yield f"  {'probability':30}threshold  precision"
    for each in findings[:shown]:
        known, columns = each.known, ""
        if answers.validation:
            limits = [f"{value:5.3f}" for value in (known.threshold, known.test.get("precision")) if value is not None]
            columns = f"{'*' if each.reached else ' '} {'      '.join(limits):18}"
        yield f"  {each.probability:6.3f}  {'#' * round(20 * each.probability):20}  {columns}{each.title}"
    if rest := findings[shown:]:
        yield f"  {len(rest)} other classes below {max(each.probability for each in rest):.3f}"


def _meaning(model: ECGModel) -> list[str]:
    """Explains the numbers of a model that was judged."""
    answers = model.answers
    if not answers.validation:
        return []
    test, without = answers.test, sum(each.threshold is None for each in answers.classes)
    before, after = test["calibration_error"]
    data = "generated ECGs, of no patient" if answers.synthetic else "PTB-XL"
    return [
        f"model {model.name}, of {data}: probabilities are calibrated on fold 9. *: the threshold is reached, which "
        f"has the best F1 of its class on fold 9 ({without} of {len(answers.classes)} are too rare there for one).",
        f"On fold 10: precision as shown, macro AUROC {test['auroc']:.3f}, calibration error {after:.4f} ({before:.4f} "
        "uncalibrated).",
    ]


def _print_stream(model: ECGModel, x: Tensor, recording: Recording, expected: Tensor) -> None:
    answers, rate = model.answers, recording.sampling_rate
    print(f"{_printable(recording.name)}: read (and resampled) whole, then fed sample by sample at {rate} Hz")
    for t, logits in enumerate(stream(model.network, x, answers.windows), start=1):
        if t % rate == 0 or t == len(x):
            values, order = torch.tensor(answers.probabilities(logits)).topk(min(SHOWN, len(logits)))
            best = "  ".join(
                f"{answers.classes[k].name} {p:.3f}" for k, p in zip(order.tolist(), values.tolist(), strict=True)
            )
            print(f"  {t / rate:7.2f} s  {best}", flush=True)
    print(f"  the whole recording at once differs by {(logits - expected).abs().max().item():.1e} in the logits")


def _write_csv(path: Path, classes: list[str], rows: dict[str, list[float]]) -> list[str]:
    """Writes predictions.csv; one of an earlier call is kept under another name, which is returned in a sentence."""
    kept = []
    if path.exists():
        free = next(other for n in range(1, 10**6) if not (other := path.with_name(f"predictions-{n}.csv")).exists())
        path.rename(free)
        kept = [f"predictions.csv of an earlier call is now {free.name}"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["recording", *classes])
        writer.writerows([name, *(f"{p:.6f}" for p in row)] for name, row in rows.items())
    return kept
