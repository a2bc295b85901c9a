"""What is said of a recording beside its probabilities: order, conflicts, what is withheld, heart rate and axis."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logit

from datamodules.ptbxl import LEADS, read_recording, simulate
from datamodules.ptbxl.statements import conflicts, needs_all_leads, scp_statements
from datamodules.ptbxl.synthetic import _beats, write_record
from tasks.ecg.recordings.findings import judged, shown
from tasks.ecg.recordings.inference import Windows
from tasks.ecg.recordings.measure import measure
from tasks.ecg.recordings.model import Answers, ClassAnswer, ECGModel
from tasks.ecg.recordings.page import index_page, recording_page
from tests.support.tolerances import allowed

THRESHOLDS = {"NORM": 0.5, "IMI": 0.5, "AFLT": None, "SR": 0.9, "LAFB": None, "AFIB": 0.2}
PROBABILITIES = {"NORM": 0.6, "IMI": 0.7, "AFLT": 0.97, "SR": 0.8, "LAFB": 0.4, "AFIB": 0.1}


def model() -> ECGModel:
    classes = [ClassAnswer(name, f"<{name}> in words", threshold=value) for name, value in THRESHOLDS.items()]
    scores = {"auroc": 0.9, "calibration_error": [0.1, 0.01]}
    answers = Answers("all", 0, 1, 100, Windows(None, 1, "mean"), classes, validation=scores, test=scores)
    return ECGModel("mine", SimpleNamespace(), answers)  # type: ignore[arg-type]


@pytest.fixture
def recording(tmp_path: Path) -> Any:
    write_record(tmp_path / "r", simulate("SR", 0, np.random.default_rng(0), 500), 500)
    header = tmp_path / "r.hea"
    header.write_text(header.read_text() + "# <age>: 61 <sex>: F <diagnoses> none\n")
    return read_recording(header, 100)


LOGITS = torch.tensor(logit(list(PROBABILITIES.values())))


def test_findings_are_in_the_order_of_their_probability(recording: Any) -> None:
    said = judged(model(), recording, "r", LOGITS)
    assert [each.known.name for each in said.findings] == ["AFLT", "SR", "IMI", "NORM", "LAFB", "AFIB"]
    assert [each.reached for each in said.findings] == [None, False, True, True, None, False]
    assert shown(said.findings) == 6
    assert said.conflicts == [("NORM", "IMI"), ("NORM", "AFLT")], "of what is found: SR is below its threshold"
    assert "conflict: NORM and IMI exclude each other" in said.about
    assert said.about[0].startswith("10.0 s at 500 Hz; female; 61 years; heart rate ")


def test_without_all_leads_only_the_rhythm_is_read(recording: Any) -> None:
    missing = np.zeros_like(recording.missing)
    missing[:, LEADS.index("V3")] = True
    said = judged(model(), replace(recording, missing=missing), "r", LOGITS)
    assert said.withheld == ["NORM", "IMI", "LAFB"]
    assert {each.known.name for each in said.findings} == {"AFLT", "SR", "AFIB"}


def test_every_statement_that_is_named_is_one_of_ptbxl() -> None:
    codes = list(scp_statements().index)
    pairs = conflicts(codes)
    assert len(pairs) == len({frozenset(pair) for pair in pairs}) > 40
    assert ("CLBBB", "CRBBB") in pairs
    assert sum(not needs_all_leads(code) for code in codes) == 12 + 6


@pytest.mark.parametrize("rate", [100, 257, 500])
@pytest.mark.parametrize(("rhythm", "finding"), [("SR", 0), ("SBRAD", 3), ("STACH", 4), ("AFIB", 1)])
def test_the_heart_rate_is_that_of_the_generated_beats(rhythm: str, finding: int, rate: int) -> None:
    beats, _ = _beats(rhythm, np.random.default_rng(5))
    inside = beats[(beats > 0.3) & (beats < 9.8)]
    values = {
        each.name: each.value
        for each in measure(simulate(rhythm, finding, np.random.default_rng(5), rate) / 1000, rate)
    }
    assert values["heart rate"] == pytest.approx(
        60 / np.median(np.diff(inside)), rel=allowed(0.03, "beats are samples of a detector")
    )
    assert values["RR"] == pytest.approx(60_000 / values["heart rate"])


@pytest.mark.parametrize("degrees", [-60, 0, 45, 110])
def test_the_axis_is_the_direction_of_the_dipole(degrees: float) -> None:
    """Limb leads of a dipole in the frontal plane: I sees it from 0 degrees, aVF from 90, and 0.87 times as large."""
    time = np.arange(0, 10, 1 / 360)
    beat = np.exp(-0.5 * (((time + 0.4) % 0.8 - 0.4) / 0.012) ** 2)
    one, foot = np.cos(np.radians(degrees)) * beat, np.sqrt(3) / 2 * np.sin(np.radians(degrees)) * beat
    x = np.zeros((len(time), 12))
    x[:, LEADS.index("I")], x[:, LEADS.index("AVF")] = one, foot
    x[:, LEADS.index("II")] = x[:, LEADS.index("V5")] = beat
    x += 1e-9  # a lead of zeros is missing
    assert measure(x, 360)[-1].value == pytest.approx(degrees, abs=allowed(2, "other beats lie in the window"))


def test_noise_and_silence_have_no_heart_rate() -> None:
    noise = 0.05 * np.random.default_rng(0).standard_normal((1000, 12))
    for signal in (noise, np.zeros((1000, 12))):
        assert [each.value for each in measure(signal, 100)] == [None, None, None]
        assert str(measure(signal, 100)[0]) == "heart rate not measurable"


def test_pages_carry_their_picture_and_nothing_unescaped(recording: Any, tmp_path: Path) -> None:
    said = judged(model(), recording, "a<b", LOGITS)
    (tmp_path / "r.png").write_bytes(b"picture")
    text = recording_page(said, model(), tmp_path / "r.png")
    assert "data:image/png;base64,cGljdHVyZQ==" in text
    assert "a&lt;b" in text
    assert "a<b" not in text
    assert "&lt;IMI&gt; in words" in text
    assert "<td>IMI *</td>" in text
    assert text.count("<td>none</td>") == 2
    index = index_page({"a<b": said}, model())
    assert '<a href="a%3Cb.html">a&lt;b</a>' in index
    assert "<td>IMI, NORM</td><td>0.700</td>" in index
