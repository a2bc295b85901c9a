"""Diagnostics of a model: pure functions of its parameters and of one input, in torch alone.

Each docstring states the definition. `trace_calls` records the inputs of the layers inside a model.
"""

from msssm.diagnostics.memory import BandMemory, band_memory, impulse_response
from msssm.diagnostics.mixer import MixerReport, mixer_report, mixer_shares
from msssm.diagnostics.mixing_distance import Mixing, mixing_distance
from msssm.diagnostics.probes import padding_error, shift_error
from msssm.diagnostics.spectrum import largest_eigenvalue, receptive_field
from msssm.diagnostics.trace import Call, trace_calls

__all__ = [
    "BandMemory",
    "Call",
    "MixerReport",
    "Mixing",
    "band_memory",
    "impulse_response",
    "largest_eigenvalue",
    "mixer_report",
    "mixer_shares",
    "mixing_distance",
    "padding_error",
    "receptive_field",
    "shift_error",
    "trace_calls",
]
