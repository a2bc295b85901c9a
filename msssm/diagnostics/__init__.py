"""Diagnostics of a model: pure functions of its parameters and of one input, in torch alone.

Each docstring states the definition. `trace_calls` records the inputs of the layers inside a model.
"""

from msssm.diagnostics.cost import Cost, PowerLaw, fit_power_law, measure_cost, measure_kept
from msssm.diagnostics.memory import BandMemory, band_memory, impulse_response
from msssm.diagnostics.mixer import MixerReport, mixer_report, mixer_shares
from msssm.diagnostics.mixing_distance import Mixing, mixing_distance
from msssm.diagnostics.probes import padding_error, shift_error
from msssm.diagnostics.spectrum import eigenvalues, largest_eigenvalue, receptive_field
from msssm.diagnostics.trace import Call, trace_calls

__all__ = [
    "BandMemory",
    "Call",
    "Cost",
    "MixerReport",
    "Mixing",
    "PowerLaw",
    "band_memory",
    "eigenvalues",
    "fit_power_law",
    "impulse_response",
    "largest_eigenvalue",
    "measure_cost",
    "measure_kept",
    "mixer_report",
    "mixer_shares",
    "mixing_distance",
    "padding_error",
    "receptive_field",
    "shift_error",
    "trace_calls",
]
