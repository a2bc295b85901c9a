"""One check of the unit: the amplitude of an ECG in mV.

An electrocardiograph must record +-5 mV and may add noise of 30 microvolts (ANSI/AAMI EC11, 3.2.1 and 3.2.13; IEC
60601-2-25 likewise): a lead that exceeds this range in most of its samples, or stays below the noise, is not in mV.
"""

from collections.abc import Mapping

import numpy as np

from datamodules.ptbxl.errors import CorruptRecordError
from datamodules.ptbxl.readers.contents import Floats

_SMALLEST, _LARGEST = 0.03, 10.0  # mV: from the 0.5th to the 99.5th percentile
_FARTHEST = 5.0  # mV: of the median from 0
_IMPOSSIBLE = 30.0  # mV, of range or median: noise takes some leads of published ECGs to 15
_USUAL = (0.2, 10.0)  # mV: range of a typical lead
_OTHER_UNITS = {"uV": 1e-3, "nV": 1e-6, "V": 1e3}


def check_amplitude(leads: Mapping[str, Floats], unit: str, *, accept: bool) -> list[str]:
    """Remarks on the amplitude of leads in mV, each with a value.

    Args:
        leads: samples of each lead, NaN for missing ones.
        unit: that the file's numbers were taken for.
        accept: take a recording that would be refused, with a remark.

    Raises:
        CorruptRecordError: half of the leads or more cannot be an ECG in mV, or one is far too large.
    """
    faults: dict[str, str] = {}
    ranges = []
    impossible = False
    for lead, samples in leads.items():
        low, middle, high = np.nanpercentile(samples, [0.5, 50, 99.5])
        ranges.append(high - low)
        impossible = impossible or max(high - low, abs(middle)) > _IMPOSSIBLE
        if np.nanmin(samples) == np.nanmax(samples):
            faults[lead] = f"constant at {middle:.4g} mV"
        elif not _SMALLEST <= high - low <= _LARGEST:
            faults[lead] = f"a range of {high - low:.4g} mV"
        elif abs(middle) > _FARTHEST:
            faults[lead] = f"a median of {middle:.4g} mV"
    if not faults:
        return []
    listed = ", ".join(f"{lead} ({reason})" for lead, reason in list(faults.items())[:3])
    listed += f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    if not accept and (impossible or 2 * len(faults) >= len(leads)):
        raise CorruptRecordError(
            f"cannot be an ECG in {unit}, {len(faults)} of {len(leads)} leads: {listed}; "
            f"{_cause(float(np.median(ranges)), unit)}; or --implausible accept, if it is right"
        )
    return [f"implausible: {listed}"]


def _cause(typical: float, unit: str) -> str:
    """The likely cause of leads with this range in mV, and the remedy."""
    if typical == 0:
        return "no electrode was connected, or these are not the samples"
    for other, factor in _OTHER_UNITS.items():
        # The numbers were multiplied by the factor of `unit`, here mV.
        if unit == "mV" and _USUAL[0] <= typical * factor <= _USUAL[1]:
            return f"the unit is likely {other}: --unit {other}, or mend the file's gain or unit"
    return "the unit, the gain or an offset is wrong, or these are counts of a converter: convert them to mV"
