"""Plausibility of a lead as an ECG in mV: its amplitude, and stretches without a measurement.

An electrocardiograph must record +-5 mV and may add noise of 30 microvolts (ANSI/AAMI EC11, 3.2.1 and 3.2.13; IEC
60601-2-25 likewise): a lead that exceeds this range in most of its samples, or stays below the noise, is not in mV.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SMALLEST, LARGEST = 0.03, 10.0  # mV: from the 0.5th to the 99.5th percentile
_FARTHEST = 5.0  # mV: of the median from 0
_IMPOSSIBLE = 30.0  # mV, of range or median: noise takes some leads of published ECGs to 15
_ECG = (0.2, 10.0)  # mV: range of a typical lead, by which a wrong unit is recognised
_CLIPPED = 0.04  # s at the same extreme value; the tops of waves are shorter
_FAR = 0.5  # mV: of that value from the median, so that a flat baseline is not one
_FAR_OUT = 10.0  # mV from the median, of single samples
_STILL = 1.0  # s without any change
_EQUAL = 1e-3  # relative: between the standard deviations of leads that were standardised

Floats = npt.NDArray[np.float64]


class Judgement(NamedTuple):
    """Judgement of all leads.

    Attributes:
        faults: reason of each lead that cannot be an ECG in mV.
        too_large: whether any of them exceeds what noise explains.
        cause: the likely cause, and what to do.
        remarks: oddities of leads that can be ECGs.
    """

    faults: dict[str, str]
    too_large: bool
    cause: str
    remarks: list[str]


def judge(leads: Sequence[str], values: Floats, rate: float) -> Judgement:
    """Judges each lead by its values (L, leads) in mV at `rate` Hz, NaN for missing samples; none is all NaN."""
    low, middle, high = np.nanpercentile(values, [0.5, 50, 99.5], axis=0)
    ranges = high - low
    faults: dict[str, str] = {}
    for lead, trace, spread, median in zip(leads, values.T, ranges, middle, strict=True):
        present = trace[~np.isnan(trace)]
        if np.ptp(present) == 0:
            faults[lead] = f"constant at {present[0]:.4g} mV"
        elif spread < SMALLEST:
            faults[lead] = f"a range of {spread:.2g} mV"
        elif spread > LARGEST:
            faults[lead] = f"a range of {spread:.4g} mV"
        elif abs(median) > _FARTHEST:
            faults[lead] = f"a median of {median:.4g} mV"
    too_large = bool(((ranges > _IMPOSSIBLE) | (np.abs(middle) > _IMPOSSIBLE)).any())
    alike = _alike(leads, values)
    cause = _cause(values, ranges, middle)
    if not faults and len(leads) > 2:
        if len(alike) == 1 and len(alike[0]) == len(leads):
            faults = dict.fromkeys(leads, "the same samples as every other lead")
            cause = "one signal was copied; give each lead its own"
        elif _normalised(values):
            faults = {lead: f"a highest value of {np.nanmax(values[:, 0]):.4g}, as every lead" for lead in leads}
            cause = "each was scaled by its own range, and they are not in mV any more; give the samples as measured"
        elif _standardised(values):
            faults = {lead: f"a standard deviation of {np.nanstd(values[:, 0]):.3g}, as every lead" for lead in leads}
            cause = "they were standardised, and are not in mV any more; give the samples as measured"
    remarks = [f"the same samples: {', '.join(group)}" for group in alike]
    fair = [lead not in faults for lead in leads]
    remarks += _stretches([lead for lead in leads if lead not in faults], values[:, fair], middle[fair], rate)
    return Judgement(faults, too_large, cause, remarks)


def gap(lead: str, missing: npt.NDArray[np.bool_], rate: float) -> str:
    """Describes the missing samples of a lead: their number, and the longest stretch."""
    start, length = _longest(missing)
    return f"{lead} ({missing.sum()}, at most {length / rate:.2f} s from {start / rate:.2f} s)"


def _cause(values: Floats, ranges: Floats, middle: Floats) -> str:
    moving = ranges[ranges > 0]
    if not len(moving):
        return "no electrode was connected, or these are not the samples"
    typical = float(np.median(moving))
    whole = bool((np.nan_to_num(values) == np.rint(np.nan_to_num(values))).all())
    if typical > LARGEST:
        if _ECG[0] <= typical / 1000 <= _ECG[1]:
            counts = ", or counts of a converter (divide by its units per mV)" if whole else ""
            return (
                f"such values fit microvolts: divide by 1000, or name the unit, as in a header `I (uV)`{counts}; in a "
                "WFDB header, the gain is too small by 1000 or its unit is wrong"
            )
        return "these are counts of a converter, or the gain is wrong: convert them to mV (divide by the units per mV)"
    if typical < SMALLEST:
        if _ECG[0] <= typical * 1000 <= _ECG[1]:
            return (
                "such values fit volts: multiply by 1000, or name the unit, as in a header `I [V]`; in a WFDB header, "
                "the gain is too large by 1000 or its unit is wrong"
            )
        return "the unit or the gain is wrong, or no electrode was connected: convert them to mV"
    if (np.abs(middle) > _FARTHEST).any():
        return "an offset was left in: subtract it from each lead"
    return "these leads were not connected or are noise, or their gain is wrong"


def _alike(leads: Sequence[str], values: Floats) -> list[list[str]]:
    """Groups of leads with equal samples, except constant ones."""
    groups: dict[bytes, list[str]] = {}
    for lead, trace in zip(leads, np.ascontiguousarray(values.T), strict=True):
        if np.nanmax(trace) > np.nanmin(trace):
            groups.setdefault(trace.tobytes(), []).append(lead)
    return [group for group in groups.values() if len(group) > 1]


def _standardised(values: Floats) -> bool:
    """Whether all leads have one standard deviation and mean; no two leads of a heart do."""
    deviations = np.nanstd(values, axis=0)
    means = np.abs(np.nanmean(values, axis=0))
    return bool(np.ptp(deviations) < _EQUAL * deviations.max() and means.max() < _EQUAL * deviations.max())


def _normalised(values: Floats) -> bool:
    """Whether each lead was divided by its range or largest value; in measured leads these are never equal."""
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    largest = np.maximum(-low, high)
    ranged = np.ptp(low) <= _EQUAL * high.max() and np.ptp(high) <= _EQUAL * high.max()
    return bool(ranged or (np.ptp(largest) <= _EQUAL * largest.max() and np.isclose(largest, 1, rtol=_EQUAL).all()))


def _stretches(leads: Sequence[str], values: Floats, middle: Floats, rate: float) -> list[str]:
    remarks = []
    for lead, trace, median in zip(leads, values.T, middle, strict=True):
        if np.nanmax(trace) == np.nanmin(trace):
            continue
        for extreme in (np.nanmin(trace), np.nanmax(trace)):
            start, length = _longest(trace == extreme)
            if length >= max(5, _CLIPPED * rate) and abs(extreme - median) >= _FAR:
                remarks.append(f"{lead} is clipped at {extreme:.4g} mV ({np.mean(trace == extreme):.1%} of it)")
        if (farthest := np.nanmax(np.abs(trace - median))) > _FAR_OUT:
            remarks.append(f"{lead} reaches {farthest:.4g} mV from its median")
        start, length = _longest(np.diff(trace) == 0)
        if length >= _STILL * rate:
            remarks.append(f"{lead} does not change for {length / rate:.1f} s from {start / rate:.1f} s")
    return remarks


def _longest(flags: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Start and length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    if not len(edges):
        return 0, 0
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    longest = int(np.argmax(lengths))
    return int(starts[longest]), int(lengths[longest])
