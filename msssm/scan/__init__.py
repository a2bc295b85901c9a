"""Selective and time-invariant scans over the bands of a sequence, on the fastest backend available."""

from msssm.scan.checks import Discretization
from msssm.scan.delta import step_size
from msssm.scan.dispatch import Backend
from msssm.scan.lti.api import lti_scan
from msssm.scan.mixing import mix_bands
from msssm.scan.selective.api import multiscale_scan, selective_scan

__all__ = [
    "Backend",
    "Discretization",
    "lti_scan",
    "mix_bands",
    "multiscale_scan",
    "selective_scan",
    "step_size",
]
