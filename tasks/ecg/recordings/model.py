"""A trained model that answers about recordings: network, scaling, windows, calibration and thresholds.

In a folder that `msssm export --ecg` wrote, ecg.json has all but the network; neither recipe nor data set is needed.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datamodules.ptbxl import LEADS
from msssm import Backbone, SequenceClassifier
from msssm.errors import InputError, MissingFileError
from msssm.pretrained import pretrained_folder, read_pretrained, shipped_models
from tasks.ecg.recordings.inference import Windows

FILE, FORMAT = "ecg.json", 1


@dataclass(frozen=True)
class ClassAnswer:
    """One class of a model; of a checkpoint, its name and description alone are known.

    Attributes:
        name: as in the label set.
        description: in words.
        positives: its records in the validation fold.
        slope: Slope of the calibration, probability = sigmoid(slope * logit + intercept).
        intercept: likewise.
        threshold: calibrated probability with the best F1 on the validation fold; None where that fold has too few
            positives.
        test: on the test fold, `auroc` and, at the threshold, `sensitivity`, `specificity` and `precision`.
    """

    name: str
    description: str
    positives: int = 0
    slope: float = 1.0
    intercept: float = 0.0
    threshold: float | None = None
    test: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """Meaning of a network's logits: the content of ecg.json.

    Attributes:
        label_set: of PTB-XL, or "own".
        mean: Mean of the training samples, in mV.
        std: likewise.
        sampling_rate: Hz.
        windows: that the network reads.
        classes: in the order of the logits.
        synthetic: whether the model was trained on generated ECGs.
        validation: scores of all classes on the validation fold (`tasks.ecg.recordings.judge`); empty for a checkpoint,
            as are the next two.
        test: likewise on the test fold.
        typical: range of each measure of `datamodules.ptbxl.typical` over PTB-XL's training recordings.
        source: Data that the labels are of.
        parts: Where calibration and thresholds, and where the scores are from.
    """

    label_set: str
    mean: float
    std: float
    sampling_rate: int
    windows: Windows
    classes: list[ClassAnswer]
    synthetic: bool = False
    validation: dict[str, Any] = field(default_factory=dict)
    test: dict[str, Any] = field(default_factory=dict)
    typical: dict[str, tuple[float, float]] = field(default_factory=dict)
    source: str = "PTB-XL"
    parts: tuple[str, str] = ("fold 9", "fold 10")

    def probabilities(self, logits: Tensor) -> list[float]:
        """Calibrated probabilities of logits (K,)."""
        fits = [(each.slope, each.intercept) for each in self.classes]
        slope, intercept = torch.tensor(fits, dtype=torch.float64).T
        return torch.sigmoid(slope * logits + intercept).tolist()


class ECGModel(NamedTuple):
    """Model that answers about recordings.

    Attributes:
        name: Name of a shipped model, or where it was read.
        network: in `eval()`, (B, L, 12) standardised leads -> (B, K) logits.
        answers: the meaning of its logits.
    """

    name: str
    network: SequenceClassifier
    answers: Answers


def write_answers(folder: Path, answers: Answers) -> None:
    """Writes ecg.json."""
    text = json.dumps({"format": FORMAT, **asdict(answers)}, indent=1, allow_nan=False)
    (folder / FILE).write_text(text + "\n")


def read_answers(folder: Path) -> Answers:
    """Reads ecg.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another format.
    """
    path = folder / FILE
    if not path.is_file():
        raise MissingFileError(f"{folder} has no {FILE}; name a folder that msssm export --ecg wrote")
    try:
        content = json.loads(path.read_text())
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        content["windows"] = Windows(**content["windows"])
        content["classes"] = [ClassAnswer(**each) for each in content["classes"]]
        content["typical"] = {name: (low, high) for name, (low, high) in content["typical"].items()}
        return Answers(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # of a file that is none of ours
        raise InputError(f"{path} is damaged or not of format {FORMAT} ({error}); export it again") from error


def ecg_models() -> dict[str, Answers]:
    """Finds the shipped models that answer about ECGs, the best on the validation fold first."""
    found = {name: read_answers(folder) for name, folder in shipped_models().items() if (folder / FILE).is_file()}
    return dict(sorted(found.items(), key=lambda item: -item[1].validation["auroc"]))


def read_model(model: str | Path | None = None) -> ECGModel:
    """Reads a shipped model by its name, or a folder; by default the best of the shipped ones.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: a file of it is damaged.
    """
    if model is not None:
        folder = pretrained_folder(model)
    elif models := ecg_models():
        model = next(iter(models))
        folder = shipped_models()[model]
    else:
        raise MissingFileError(
            "no model is shipped with this version; name a folder that msssm export --ecg wrote: --model folder"
        )
    answers = read_answers(folder)
    backbone = Backbone.from_pretrained(folder)
    network = SequenceClassifier(nn.Linear(len(LEADS), backbone.d_model), backbone, len(answers.classes))
    try:
        network.load_state_dict(read_pretrained(folder)[1], assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}: the weights do not fit {FILE} ({reason}); export it again") from error
    return ECGModel(str(model), network.eval(), answers)
