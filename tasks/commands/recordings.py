"""`msssm predict --record`: what a trained model says about an ECG that a user brings."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from datamodules.errors import InputError as DataError
from datamodules.ptbxl import PTBXLDataModule, Recording, find_recordings, read_recording
from datamodules.ptbxl.datamodule import window_starts
from datamodules.ptbxl.recording import FillMissing, Implausible
from datamodules.ptbxl.statements import scp_statements
from msssm import SequenceClassifier, StreamingClassifier
from msssm.errors import InputError
from tasks.base import SequenceTask
from tasks.ecg import ECGTask, aggregate
from tasks.paths import make_folder
from tasks.reports.ecg_paper import RESEARCH, ecg_figure
from tasks.run.checkpoint_io import read_checkpoint
from tasks.run.weights import check_weights

WINDOWS, POSITIONS = 32, 4096  # at a time, so that memory does not grow with the recording
LISTED, SHOWN = 0.05, 5  # the table has the classes of at least this probability, and at least so many


@dataclass(frozen=True)
class RecordingOptions:
    """Options of `msssm predict`, which `add_arguments` describes."""

    record: str | None
    sampling_rate: float | None
    leads: list[str] | None
    fill_missing: FillMissing
    implausible: Implausible
    stream: bool
    output: str


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options of predict for a user's recording."""
    parser.add_argument(
        "--record", type=str | None, default=None,
        help="An ECG to predict: a WFDB record, a table (.csv, .tsv, .txt, .gz) or an array (.npy, .npz), in mV unless "
        "it names another unit; or a folder of them. Needs no data set.",
    )  # fmt: skip
    parser.add_argument(
        "--sampling_rate",
        type=float | None,
        default=None,
        help="Hz, of a file that has no rate and no column of times.",
    )
    parser.add_argument(
        "--leads", type=list[str] | None, default=None,
        help="Names of the columns in order, of a file that does not name them; any other name, as x, skips a column.",
    )  # fmt: skip
    parser.add_argument(
        "--fill_missing", type=FillMissing, default="no",
        help="Missing leads and samples: no (an error), derive (limb leads from I and II), zero (that, and the mean).",
    )  # fmt: skip
    parser.add_argument(
        "--implausible", type=Implausible, default="refuse",
        help="Where most leads are flat or cannot be an ECG in mV: refuse, or accept (take them as they are).",
    )  # fmt: skip
    parser.add_argument("--stream", action="store_true", help="Feed the recording sample by sample.")
    parser.add_argument("--output", type=str, default="predictions", help="Folder for .json, .csv and .png.")


@dataclass(frozen=True)
class Windows:
    """Windows of a recording: `crop` samples every `stride` samples, or (None) all of it."""

    crop: int | None
    stride: int
    aggregation: str

    def starts(self, length: int) -> tuple[int, list[int]]:
        """Samples per window, and the starts of a recording's windows, the last of which ends with it."""
        window = length if self.crop is None else self.crop
        if length < window:
            raise InputError(
                f"the recording has {length} samples at the model's rate, fewer than its window of {window}; "
                "give a longer recording"
            )
        return window, window_starts(length, window, self.stride if self.crop else window)


def predict_recordings(
    task: SequenceTask, data: LightningDataModule | None, checkpoint: str, options: RecordingOptions
) -> None:
    """Prints a table per recording; writes <output>/<recording>.json and .png, and predictions.csv over all.

    Raises:
        ValueError: a recipe or a checkpoint that is not of PTB-XL, or recordings that cannot be used (of a folder, the
            others are predicted first).
        FileNotFoundError: no such recording.
    """
    if not isinstance(task, ECGTask) or not isinstance(data, PTBXLDataModule):
        raise InputError("--record needs a recipe with tasks.ECGTask and datamodules.PTBXLDataModule")
    source, output = Path(options.record or ""), Path(options.output)
    scaling = load(task, checkpoint)
    windows = Windows(data.crop, data.stride, task.aggregation)
    files = find_recordings(source)
    rows: dict[str, list[float]] = {}
    failures = []
    for file, name in zip(files, _names(files, source), strict=True):
        try:
            recording = read_recording(
                file,
                scaling["sampling_rate"],
                given_rate=options.sampling_rate,
                given_leads=options.leads,
                fill_missing=options.fill_missing,
                implausible=options.implausible,
            )
            windows.starts(len(recording.signal))
        except (InputError, DataError) as error:
            failures.append(str(error))
            continue
        x = standardised(recording, scaling["mean"], scaling["std"])
        logits = offline(task.model, x, windows)
        if options.stream:
            _print_stream(task.model, x, windows, recording, scaling["classes"], logits)
        probability = torch.sigmoid(logits.double()).tolist()
        ranked = sorted(zip(scaling["classes"], probability, strict=True), key=lambda item: -item[1])
        path = output / name
        make_folder(path.parent)
        about = _about(recording)
        print("\n".join([f"{name}: {'; '.join(about)}", *_table(ranked), f"  {RESEARCH}", ""]))
        content = {
            "recording": str(file),
            "checkpoint": checkpoint,
            "label_set": task.label_set,
            "seconds": len(x) / recording.sampling_rate,
            "original_rate": recording.original_rate,
            "sampling_rate": recording.sampling_rate,
            "notes": recording.notes,
            "windows": len(windows.starts(len(x))[1]),
            "aggregation": windows.aggregation,
            "probabilities": dict(ranked),
            "logits": dict(zip(scaling["classes"], logits.tolist(), strict=True)),
            "warning": RESEARCH,
        }
        Path(f"{path}.json").write_text(json.dumps(content, indent=2) + "\n")
        findings = [(_described(code), p) for code, p in ranked]
        figure = ecg_figure(recording.signal, recording.sampling_rate, name, about, findings)
        figure.savefig(f"{path}.png", dpi=200)
        rows[name] = probability
    if rows:
        _write_csv(output / "predictions.csv", scaling["classes"], rows)
        print(f"written to {output}")
    if failures:
        more = f"; {len(rows)} of {len(files)} recordings were predicted" if len(files) > 1 else ""
        raise InputError("\n".join(failures) + more)


def load(task: ECGTask, checkpoint: str) -> dict[str, Any]:
    """Puts a checkpoint's weights into the task, in eval(); returns its mean, std (mV), classes and sampling_rate.

    Raises:
        ValueError: it cannot be read, or was trained with another recipe.
    """
    state = read_checkpoint(Path(checkpoint))
    check_weights(task, state, checkpoint)
    scaling: dict[str, Any] | None = state.get(PTBXLDataModule.__name__)
    if scaling is None:
        raise InputError(f"{checkpoint} does not fit the recipe: it was not trained on PTB-XL")
    task.load_state_dict(state["state_dict"])
    task.eval()
    return scaling


def standardised(recording: Recording, mean: float, std: float) -> Tensor:
    """Standardises a recording to (L, 12) float32 as in training; missing samples become the mean."""
    x = np.where(recording.missing, 0.0, (recording.signal - mean) / std)
    return torch.from_numpy(x.astype(np.float32))


@torch.inference_mode()
def offline(model: SequenceClassifier, x: Tensor, windows: Windows) -> Tensor:
    """Computes the logits (K,) of a recording x (L, 12), in chunks of windows and of positions."""
    window, starts = windows.starts(len(x))
    logits = []
    for first in range(0, len(starts), WINDOWS):
        rows = torch.stack([x[start : start + window] for start in starts[first : first + WINDOWS]])
        state = model.initial_state(len(rows))
        for chunk in rows.split(POSITIONS, dim=1):
            part, state = model(chunk, state=state, return_state=True)
        logits.append(part)
    return aggregate(torch.cat(logits).float().unsqueeze(0), windows.aggregation)[0]


def stream(model: SequenceClassifier, x: Tensor, windows: Windows) -> Iterator[Tensor]:
    """Yields logits (K,) after each sample of x (L, 12): those of the full windows, or of the first while it fills.

    It keeps one running state for each window that contains the sample, at most crop / stride and one more for the
    last, which ends with the recording, and the logits of the full windows.
    """
    stepper = StreamingClassifier(model)
    window, starts = windows.starts(len(x))
    begin = set(starts)
    live: dict[int, Any] = {}
    full: list[Tensor] = []
    for t, sample in enumerate(x.unsqueeze(1)):
        if t in begin:
            live[t] = stepper.initial_state(1)
        for start in list(live):
            logits, live[start] = stepper.step(sample, live[start])
            if not full and start == 0:
                now = logits[0]
            if t + 1 - start == window:
                full.append(logits.float())
                now = aggregate(torch.stack(full, 1), windows.aggregation)[0]
                del live[start]
        yield now


def _print_stream(
    model: SequenceClassifier, x: Tensor, windows: Windows, recording: Recording, classes: list[str], expected: Tensor
) -> None:
    rate = recording.sampling_rate
    print(f"{recording.name}: the file is read (and resampled) whole, then fed sample by sample at {rate} Hz")
    for t, logits in enumerate(stream(model, x, windows), start=1):
        if t % rate == 0 or t == len(x):
            values, order = torch.sigmoid(logits).topk(min(SHOWN, len(classes)))
            best = "  ".join(f"{classes[k]} {p:.3f}" for k, p in zip(order.tolist(), values.tolist(), strict=True))
            print(f"  {t / rate:7.2f} s  {best}", flush=True)
    print(f"  the whole recording at once differs by {(logits - expected).abs().max().item():.1e} in the logits")


def _names(files: Sequence[Path], source: Path) -> list[str]:
    """Names of the outputs: the path within the folder, with its suffix only where two recordings share the rest."""
    inside = [file.relative_to(source) if source.is_dir() else Path(file.name) for file in files]
    bare = [str(Path(str(path).removesuffix(".gz")).with_suffix("")) for path in inside]
    return [str(path) if bare.count(name) > 1 else name for path, name in zip(inside, bare, strict=True)]


def _about(recording: Recording) -> list[str]:
    seconds = len(recording.signal) / recording.sampling_rate
    return [f"{seconds:.1f} s at {recording.sampling_rate} Hz", *recording.notes]


_DESCRIPTIONS = {str(code): str(text) for code, text in scp_statements()["description"].items()}


def _described(code: str) -> str:
    description = _DESCRIPTIONS.get(code, code)
    return code if description == code else f"{code}  {description}"


def _table(ranked: Sequence[tuple[str, float]]) -> Iterator[str]:
    """Formats classes and probabilities, highest first; improbable ones are only counted."""
    shown = max(SHOWN, sum(p >= LISTED for _, p in ranked))
    for code, p in ranked[:shown]:
        yield f"  {p:6.3f}  {'#' * round(20 * p):20}  {_described(code)}"
    if rest := len(ranked) - shown:
        yield f"  {rest} other classes below {ranked[shown - 1][1]:.3f}"


def _write_csv(path: Path, classes: list[str], rows: dict[str, list[float]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["recording", *classes])
        writer.writerows([name, *(f"{p:.6f}" for p in row)] for name, row in rows.items())
