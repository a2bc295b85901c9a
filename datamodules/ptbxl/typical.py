"""Ranges that PTB-XL's recordings keep: a recording outside of them is unlike what a model was trained on."""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from datamodules.ptbxl.leads import DERIVED, LEADS
from datamodules.ptbxl.record import SECONDS
from datamodules.ptbxl.recording import STILL, Recording

QUANTILES = (0.001, 0.999)
SLOW, FAST = 0.5, 40.0  # Hz
_ADULT = 18
_LONGER = 0.5  # s by which a recording may differ from PTB-XL's
_LIMB = [LEADS.index(lead) for lead in ("I", "II", "III", "AVR", "AVL", "AVF")]
_LAW = np.array(list(DERIVED.values()))
_UNITS = {"amplitude": "mV", "slow": "%", "fast": "%", "limb leads": "%"}
_MEANING = {
    "amplitude": "the range of the median lead (electrodes, or a wrong gain) is",
    "slow": f"the share of the power below {SLOW:g} Hz (baseline wander, or another filter against it) is",
    "fast": f"the share of the power above {FAST:g} Hz (mains and muscle, or another low-pass filter) is",
    "limb leads": "III, aVR, aVL and aVF are off what I and II give (misnamed or exchanged leads) by",
}

Floats = npt.NDArray[np.float64]
Range = tuple[float, float]


def measures(signal: Floats, sampling_rate: float) -> dict[str, float]:
    """Computes the numbers of `_MEANING` for a recording (L, 12) in mV, NaN for missing samples.

    A recording longer than PTB-XL's has the median over pieces of their length. A number that cannot be had, such as
    that of the limb leads without one of them, is left out.
    """
    length = min(len(signal), round(SECONDS * sampling_rate))
    pieces = signal[: len(signal) // length * length].reshape(-1, length, signal.shape[1])
    found = [_of_piece(piece, sampling_rate) for piece in pieces]
    names = [name for name in _MEANING if any(name in each for each in found)]
    return {name: float(np.median([each[name] for each in found if name in each])) for name in names}


def _of_piece(piece: Floats, sampling_rate: float) -> dict[str, float]:
    known = piece[:, ~np.isnan(piece).any(axis=0)]
    found: dict[str, float] = {}
    if known.shape[1]:
        low, high = np.percentile(known, [0.5, 99.5], axis=0)
        found["amplitude"] = float(np.median(high - low))
        power = np.abs(np.fft.rfft(known - known.mean(axis=0), axis=0)) ** 2
        frequency = np.fft.rfftfreq(len(piece), 1 / sampling_rate)
        total = power.sum(axis=0)
        moving = total > 0
        for name, band in (("slow", frequency < SLOW), ("fast", frequency > FAST)):
            if moving.any() and band.any():
                found[name] = 100 * float(np.median(power[band][:, moving].sum(axis=0) / total[moving]))
    limb = piece[:, _LIMB]
    size = np.sqrt(np.mean((limb - limb.mean(axis=0)) ** 2))
    if size > 0:  # false of NaN
        off = limb[:, 2:] - limb[:, :2] @ _LAW.T
        found["limb leads"] = 100 * float(np.sqrt(np.mean((off - off.mean(axis=0)) ** 2)) / size)
    return found


def typical_ranges(signals: Iterable[Floats], sampling_rate: float) -> dict[str, Range]:
    """Computes the `QUANTILES` of each measure over recordings (L, 12) in mV; that of the limb leads starts at 0."""
    found = [measures(signal, sampling_rate) for signal in signals]
    ranges: dict[str, Range] = {}
    for name in _MEANING:
        low, high = np.quantile([each[name] for each in found if name in each], QUANTILES)
        ranges[name] = (0.0 if name == "limb leads" else float(low), float(high))
    return ranges


def unlike(recording: Recording, ranges: Mapping[str, Range]) -> list[str]:
    """Lists how a recording differs from PTB-XL's in leads, gaps, length, rate, age, and the measures."""
    found = []
    absent = recording.missing.all(axis=0)
    if absent.any():
        found.append(f"{', '.join(np.array(LEADS)[absent])} missing; PTB-XL has all twelve leads")
    gaps = [f"{lead} {silent:.1f} s" for lead, silent in recording.silent.items() if silent >= STILL]
    if gaps:
        listed = ", ".join(gaps[:3]) + (f" and {len(gaps) - 3} more leads" if len(gaps) > 3 else "")
        found.append(f"without a signal (missing or unchanged): {listed}; one in 1,000 of PTB-XL has such a gap")
    seconds = len(recording.signal) / recording.sampling_rate
    if abs(seconds - SECONDS) > _LONGER:
        found.append(f"{seconds:.1f} s long; calibration and thresholds are for PTB-XL's {SECONDS} s")
    slow_rate = recording.original_rate < recording.sampling_rate
    if slow_rate:
        found.append(f"sampled at {recording.original_rate:g} Hz: nothing above {recording.original_rate / 2:g} Hz")
    if recording.age is not None and recording.age < _ADULT:
        found.append(f"of a person of {recording.age:.3g} years; nearly all in PTB-XL are adults")
    signal = np.where(recording.missing, np.nan, recording.signal)
    for name, value in measures(signal, recording.sampling_rate).items():
        low, high = ranges[name]
        if not low <= value <= high and not (name == "fast" and slow_rate):
            unit = _UNITS[name]
            found.append(f"{_MEANING[name]} {value:.3g} {unit}; in PTB-XL {low:.2g} to {high:.3g} {unit}")
    return found
