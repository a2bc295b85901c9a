"""Selective and time-invariant scans over the bands of a sequence, on the fastest backend available."""

from msssm.scan.checks import Discretization
from msssm.scan.dispatch import Backend
from msssm.scan.lti import lti_scan
from msssm.scan.mixing import mix_bands
from msssm.scan.selective import multiscale_scan, selective_scan
from msssm.scan.step_size import step_size
from msssm.scan.triton import selfcheck, verdict

verdict.examine = selfcheck.examine

__all__ = [
    "Backend",
    "Discretization",
    "lti_scan",
    "mix_bands",
    "multiscale_scan",
    "selective_scan",
    "step_size",
]
