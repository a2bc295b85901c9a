"""A trained model as it answers about recordings: network, scaling, windows; calibration and thresholds if it has any.

A folder that `msssm export --ecg` wrote has them in ecg.json, and nothing else is needed: no recipe, no data set.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from datamodules.ptbxl.record import LEADS
from msssm import Backbone, SequenceClassifier
from msssm.errors import InputError, MissingFileError
from msssm.pretrained import SHIPPED, WEIGHTS, pretrained_folder, shipped_models
from tasks.recordings.inference import Windows

FILE, FORMAT = "ecg.json", 1


@dataclass(frozen=True)
class ClassAnswer:
    """What is known of one class; of a checkpoint's, only its name.

    Attributes:
        name: as in the label set.
        description: in words.
        positives: records of the validation fold that have it.
        slope: of the calibration, probability = sigmoid(slope * logit + intercept).
        intercept: likewise.
        threshold: of the calibrated probability, with the best F1 on the validation fold; None where that has too few
            positives to tell, or the model tells nothing.
        validation: on that fold, `auroc`, and at the threshold `sensitivity`, `specificity` and `precision`.
        test: likewise on the test fold, which nothing was chosen on.
    """

    name: str
    description: str
    positives: int = 0
    slope: float = 1.0
    intercept: float = 0.0
    threshold: float | None = None
    validation: dict[str, float | None] = field(default_factory=dict)
    test: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """How a network's logits become answers: the content of ecg.json.

    Attributes:
        label_set: of PTB-XL.
        mean: mV, of the training samples.
        std: likewise.
        sampling_rate: Hz.
        windows: how the model looks at a recording.
        classes: in the order of the logits.
        validation: of all classes together on the validation fold: `auroc` (macro), and `brier` and
            `calibration_error` before and after the calibration. Empty of a checkpoint, as are the next two.
        test: likewise on the test fold.
        typical: of each measure of `datamodules.ptbxl.typical`, the range that the training recordings keep.
    """

    label_set: str
    mean: float
    std: float
    sampling_rate: int
    windows: Windows
    classes: list[ClassAnswer]
    validation: dict[str, Any] = field(default_factory=dict)
    test: dict[str, Any] = field(default_factory=dict)
    typical: dict[str, tuple[float, float]] = field(default_factory=dict)

    def probabilities(self, logits: Tensor) -> list[float]:
        """Of logits (K,), calibrated."""
        values = logits.double()
        slope = values.new_tensor([each.slope for each in self.classes])
        return torch.sigmoid(slope * values + values.new_tensor([each.intercept for each in self.classes])).tolist()


class ECGModel(NamedTuple):
    """What answers about recordings.

    Attributes:
        name: of a shipped model, or where it was read from.
        network: in `eval()`, (B, L, 12) standardised leads -> (B, K) logits.
        answers: what its logits mean.
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
        content: Mapping[str, Any] = json.loads(path.read_text())
        fields = {name: value for name, value in content.items() if name != "format"}
        fields["windows"] = Windows(**fields["windows"])
        fields["classes"] = [ClassAnswer(**each) for each in fields["classes"]]
        fields["typical"] = {name: (low, high) for name, (low, high) in fields["typical"].items()}
        answers = Answers(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # of a file that is none of ours
        raise InputError(f"{path} is damaged ({error}); export it again") from error
    if content.get("format") != FORMAT:
        raise InputError(f"{path} is not of format {FORMAT}; export it again with this version of msssm")
    return answers


def ecg_models() -> dict[str, Answers]:
    """The shipped models that answer about ECGs, the best on the validation fold first."""
    found = {name: read_answers(SHIPPED / name) for name in shipped_models() if (SHIPPED / name / FILE).is_file()}
    return dict(sorted(found.items(), key=lambda item: -item[1].validation["auroc"]))


def read_model(model: str | Path | None = None) -> ECGModel:
    """A model by the name of a shipped one, or from a folder; by default the best of the shipped ones.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: a file of it is damaged.
    """
    if model is None:
        model = next(iter(ecg_models()), None)
        if model is None:
            raise MissingFileError(
                "no model is shipped with this version; name a folder that msssm export --ecg wrote: --model folder"
            )
    folder = pretrained_folder(model)
    answers = read_answers(folder)
    backbone = Backbone.from_pretrained(folder)
    network = SequenceClassifier(nn.Linear(len(LEADS), backbone.d_model), backbone, len(answers.classes))
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise InputError(f"{folder}: the weights do not fit {FILE} ({error}); export it again") from error
    return ECGModel(str(model), network.eval(), answers)
