"""Heart rate and axis of a recording, from the beats that wfdb's detector finds."""

import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.signal import resample_poly
from wfdb.processing import xqrs_detect

from datamodules.ptbxl.leads import LEADS

RATE = 360  # Hz, at which wfdb's detector was made; at 100 Hz it takes T waves for beats
FEWEST = 3  # beats
_AGREED = 0.8  # of the beats of either lead have one of the other beside them
_NEAR, _HALF_QRS = 0.06, 0.06  # s

Floats = npt.NDArray[np.float64]
Beats = npt.NDArray[np.int64]


class Measurement(NamedTuple):
    """One number of a recording.

    Attributes:
        name: What was measured.
        value: Its value; None where it is not measurable.
        unit: Unit of the value.
    """

    name: str
    value: float | None
    unit: str

    def __str__(self) -> str:
        """Name, value and unit."""
        return f"{self.name} {'not measurable' if self.value is None else f'{self.value:.0f} {self.unit}'}"


def measure(trace: Floats, rate: float) -> list[Measurement]:
    """Measures a recording (L, 12) in mV; a lead of zeros is missing.

    Beats are those on which two leads agree. The heart rate is 60 / median RR. The axis is the direction of the mean
    QRS in I and aVF (times 2 / sqrt(3), since Goldberger's leads are shorter). These are numbers of algorithms.
    """
    x = resample_poly(trace, RATE * 1000, round(rate * 1000), axis=0, padtype="line")
    beats = _beats(x)
    rr = float(np.median(np.diff(beats))) / RATE if len(beats) >= FEWEST else None
    return [
        Measurement("heart rate", 60 / rr if rr else None, "/min"),
        Measurement("RR", 1000 * rr if rr else None, "ms"),
        Measurement("axis", _axis(x, beats) if rr else None, "degrees"),
    ]


def _beats(x: Floats) -> Beats:
    """Beats (samples at `RATE`) of a lead whose beats another one has too; of a single lead its own; else none."""
    present = [lead for lead in dict.fromkeys(("II", "V5", "V2", *LEADS)) if x[:, LEADS.index(lead)].any()]
    found = [_of_lead(x[:, LEADS.index(lead)]) for lead in present[:4]]
    if len(found) == 1:
        return found[0]
    pairs = ((one, other) for i, one in enumerate(found) for other in found[i + 1 :])
    return next((one for one, other in pairs if _agree(one, other)), np.array([], dtype=np.int64))


def _of_lead(x: Floats) -> Beats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return np.array(xqrs_detect(x, RATE, verbose=False), dtype=np.int64)
        except (ValueError, IndexError):  # of a signal without a beat
            return np.array([], dtype=np.int64)


def _agree(one: Beats, other: Beats) -> bool:
    if min(len(one), len(other)) < FEWEST:
        return False
    near = np.abs(one[:, None] - other) <= _NEAR * RATE
    return bool(near.any(1).mean() >= _AGREED and near.any(0).mean() >= _AGREED)


def _axis(x: Floats, beats: Beats) -> float | None:
    reach = round(_HALF_QRS * RATE)
    lead_i, avf = (x[:, LEADS.index(name)] for name in ("I", "AVF"))
    if not (lead_i.any() and avf.any()):
        return None
    window = beats[(beats >= reach) & (beats < len(x) - reach), None] + np.arange(-reach, reach)
    net_i, net_f = (float(np.sum(lead[window] - np.median(lead))) for lead in (lead_i, avf))
    return float(np.degrees(np.arctan2(2 / np.sqrt(3) * net_f, net_i)))
