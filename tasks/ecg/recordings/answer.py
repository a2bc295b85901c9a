"""A model's answer about recordings: a printed table, .json, .csv, a picture on ECG paper, and a page."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from datamodules.ptbxl.recording import Recording, find_recordings
from msssm.errors import InputError
from tasks.ecg.paper import RESEARCH, ecg_figure
from tasks.ecg.recordings.findings import SHOWN, Answer, Finding, judged, meaning, shown
from tasks.ecg.recordings.inference import offline, standardised, stream
from tasks.ecg.recordings.model import Answers, ECGModel
from tasks.ecg.recordings.options import RecordingOptions
from tasks.ecg.recordings.page import index_page, recording_page
from tasks.paths import make_folder


def answer(model: ECGModel, sources: Sequence[Path], options: RecordingOptions) -> None:
    """Prints a table per recording; writes <output>/<recording>.json, .png and .html, index.html and predictions.csv.

    Args:
        model: the model that answers.
        sources: recordings, or folders of them.
        options: how they are read.

    Raises:
        ValueError: recordings that cannot be used; the others are answered first.
        FileNotFoundError: no such recording; nothing is answered.
    """
    files = named_recordings(sources)
    said: dict[str, Answer] = {}
    failures = []
    try:
        for name, file in files.items():
            try:
                said[name] = _answer_one(model, file, name, options)
            except InputError as error:
                failures.append(_printable(str(error)))
    finally:  # also of those before an interruption
        if said:
            kept = _write_csv(options.output / "predictions.csv", [each.name for each in model.answers.classes], said)
            (options.output / "index.html").write_text(index_page(said, model))
            print("\n".join([*meaning(model), RESEARCH, *kept, f"open {options.output / 'index.html'}"]))
    if failures:
        more = f"; {len(said)} of {len(files)} recordings were predicted" if len(files) > 1 else ""
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


def _answer_one(model: ECGModel, file: Path, name: str, options: RecordingOptions) -> Answer:
    """Prints and writes the answer about one recording."""
    answers = model.answers
    recording = options.read(file, answers.sampling_rate)
    x = standardised(recording, answers.mean, answers.std)
    logits = offline(model.network, x, answers.windows)
    if options.stream:
        _print_stream(model, x, recording, logits)
    said = judged(model, recording, name, logits)
    print("\n".join([f"{name}: " + "\n  ".join(said.about), *_table(said.findings, answers), ""]), flush=True)
    path = options.output / name
    make_folder(path.parent)
    _, starts = answers.windows.starts(len(x))
    content = {
        "recording": _printable(str(file)),
        "model": model.name,
        "label_set": answers.label_set,
        "seconds": len(x) / recording.sampling_rate,
        "original_rate": recording.original_rate,
        "sampling_rate": recording.sampling_rate,
        "age": recording.age,
        "sex": recording.sex,
        "notes": recording.notes,
        "unlike_ptbxl": said.unlike,
        "measurements": {f"{each.name}, {each.unit}": each.value for each in said.measurements},
        "windows": len(starts),
        "aggregation": answers.windows.aggregation,
        "probabilities": {each.known.name: each.probability for each in said.findings},
        "withheld": said.withheld,
        "conflicts": said.conflicts,
        "logits": {each.name: value for each, value in zip(answers.classes, logits.tolist(), strict=True)},
        "warning": RESEARCH,
    }
    if answers.validation:
        content |= {
            "above_threshold": [each.known.name for each in said.findings if each.reached],
            "thresholds": {each.name: each.threshold for each in answers.classes},
            "meaning": meaning(model),
        }
    Path(f"{path}.json").write_text(json.dumps(content, indent=2) + "\n")
    unknown = " (no threshold)" if answers.validation else ""
    marks = {True: " *", False: "", None: unknown}
    marked = [(each.title + marks[each.reached], each.probability) for each in said.findings]
    ecg_figure(recording.trace, recording.original_rate, name, said.about, marked).savefig(f"{path}.png", dpi=200)
    Path(f"{path}.html").write_text(recording_page(said, model, Path(f"{path}.png")))
    return said


def _table(findings: Sequence[Finding], answers: Answers) -> Iterator[str]:
    """Formats the most probable statements, down to the last that reaches its threshold; others are only counted."""
    count = shown(findings)
    if answers.validation:
        yield f"  {'probability':30}threshold  precision"
    for each in findings[:count]:
        known, columns = each.known, ""
        if answers.validation:
            threshold, precision = known.threshold, known.test.get("precision")
            limits = [" none" if threshold is None else f"{threshold:5.3f}"]
            limits += [] if precision is None else [f"{precision:5.3f}"]
            columns = f"{each.mark:1} {'      '.join(limits):18}"
        yield f"  {each.probability:6.3f}  {'#' * round(20 * each.probability):20}  {columns}{each.title}"
    if rest := findings[count:]:
        yield f"  {len(rest)} other statements below {rest[0].probability:.3f}"


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


def _write_csv(path: Path, classes: list[str], said: dict[str, Answer]) -> list[str]:
    """Writes predictions.csv; one of an earlier call is kept under another name, which is returned in a sentence."""
    kept = []
    if path.exists():
        free = next(other for n in range(1, 10**6) if not (other := path.with_name(f"predictions-{n}.csv")).exists())
        path.rename(free)
        kept = [f"predictions.csv of an earlier call is now {free.name}"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["recording", *classes])
        for name, each in said.items():
            found = {finding.known.name: f"{finding.probability:.6f}" for finding in each.findings}
            writer.writerow([name, *(found.get(code, "") for code in classes)])
    return kept
