"""What a model's logits mean for one recording: statements in order, conflicts, and what is withheld."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from datamodules.ptbxl.recording import Recording
from datamodules.ptbxl.statements import conflicts, needs_all_leads
from datamodules.ptbxl.typical import unlike
from tasks.ecg.recordings.measure import Measurement, measure
from tasks.ecg.recordings.model import ClassAnswer, ECGModel

LISTED, SHOWN = 0.05, 5  # tables have the statements of at least this probability, and at least so many


class Finding(NamedTuple):
    """Statement with its probability in one recording.

    Attributes:
        known: The statement.
        probability: Its calibrated probability.
        reached: Whether that reaches the statement's threshold; None where it has none.
    """

    known: ClassAnswer
    probability: float
    reached: bool | None

    @property
    def title(self) -> str:
        """Code and description."""
        name, description = self.known.name, self.known.description
        return name if description == name else f"{name}  {description}"

    @property
    def mark(self) -> str:
        """`*` where the threshold is reached."""
        return "*" if self.reached else ""


class Answer(NamedTuple):
    """What a model says of one recording.

    Attributes:
        name: Name of its files.
        recording: The recording.
        findings: Statements, the most probable first, without those that are withheld.
        withheld: Statements that need leads which are missing.
        conflicts: Pairs of findings that exclude each other.
        measurements: Heart rate and the like.
        unlike: How the recording differs from the training data.
        logits: (K,) of all statements.
    """

    name: str
    recording: Recording
    findings: list[Finding]
    withheld: list[str]
    conflicts: list[tuple[str, str]]
    measurements: list[Measurement]
    unlike: list[str]
    logits: Tensor

    @property
    def about(self) -> list[str]:
        """Lines on the recording."""
        recording = self.recording
        seconds = len(recording.signal) / recording.sampling_rate
        person = [recording.sex] if recording.sex else []
        person += [f"{recording.age:.3g} years"] if recording.age is not None else []
        facts = [f"{seconds:.1f} s at {recording.original_rate:g} Hz", *person, *map(str, self.measurements)]
        withheld = f"leads are missing: {len(self.withheld)} statements that need all twelve are withheld"
        return [
            "; ".join(facts),
            *(f"conflict: {one} and {other} exclude each other" for one, other in self.conflicts),
            *([withheld] if self.withheld else []),
            *(f"unlike PTB-XL: {each}" for each in self.unlike),
            *recording.notes,
        ]


def judged(model: ECGModel, recording: Recording, name: str, logits: Tensor) -> Answer:
    """What the logits (K,) of a recording mean."""
    answers = model.answers
    lacks_leads = bool(recording.missing.all(axis=0).any())
    findings, withheld = [], []
    for known, probability in zip(answers.classes, answers.probabilities(logits), strict=True):
        if lacks_leads and needs_all_leads(known.name):
            withheld.append(known.name)
            continue
        reached = None if known.threshold is None else probability >= known.threshold
        findings.append(Finding(known, probability, reached))
    findings.sort(key=lambda finding: -finding.probability)
    said = [each.known.name for each in findings if each.reached or (each.reached is None and each.probability >= 0.5)]
    return Answer(
        name,
        recording,
        findings,
        withheld,
        conflicts(said),
        measure(recording.trace, recording.original_rate),
        unlike(recording, answers.typical) if answers.typical else [],
        logits,
    )


def shown(findings: Sequence[Finding]) -> int:
    """Number of findings that a table has: down to the last that reaches its threshold."""
    last = max((i for i, each in enumerate(findings) if each.reached or each.probability >= LISTED), default=-1)
    return min(len(findings), max(SHOWN, last + 1))


def meaning(model: ECGModel) -> list[str]:
    """Two sentences on the numbers of a model that was judged; none for a checkpoint."""
    answers = model.answers
    if not answers.validation:
        return []
    test, without = answers.test, sum(each.threshold is None for each in answers.classes)
    before, after = test["calibration_error"]
    data = "generated ECGs, of no patient" if answers.synthetic else answers.source
    chosen, judged_on = answers.parts
    return [
        f"model {model.name}, of {data}: probabilities are calibrated on {chosen}. *: the threshold is reached, which "
        f"has the best F1 of its class on {chosen} ({without} of {len(answers.classes)} are too rare there: none).",
        f"On {judged_on}: precision as shown, macro AUROC {test['auroc']:.3f}, calibration error {after:.4f} "
        f"({before:.4f} uncalibrated).",
    ]
