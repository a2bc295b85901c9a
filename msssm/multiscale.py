"""MS-SSM: decompose the sequence, run one state space model per band, mix the scales."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from msssm.decomposition import ConvolutionBands, FilterInit, MultiScaleDecomposition
from msssm.errors import InputError
from msssm.initialization import Initialization
from msssm.layer import SequenceLayer
from msssm.padding import zero_padding
from msssm.scale_mixer import Mixer, ScaleMixer
from msssm.scan import Backend, Discretization
from msssm.scan.cpu.step import StepParameters, fits, multiscale_step
from msssm.scan.dispatch import choose
from msssm.scan.step_size import MAX_DELTA, MIN_DELTA
from msssm.ssm import LOG_RATE_LIMITS, S4, S6, NoSSM
from msssm.untouched import untouched


class MultiScaleState(NamedTuple):
    """The histories of the filters, each (B, (K - 1) 2^(s-1), D), and the states of the SSMs, (B, M, D, N)."""

    filters: tuple[Tensor, ...]
    ssm: Tensor | None


class MultiScaleSSM(SequenceLayer):
    """The multi-scale state space model (Karami et al. 2025, arXiv 2512.23824, section 3).

    With bands u^0 = x, u^1..u^S = details, u^{S+1} = approximation of the learned wavelet transform,

        h^s_t = exp(Delta^s A^s) h^s_{t-1} + Bbar^s u^s_t,   y^s_t = <C^s, h^s_t>,   z_t = sum_s E_t[s] y^s_t

    Args:
        d_model: D, channels.
        levels: S; there are M = S + 2 bands.
        kernel_size: K, taps of the filters.
        state_size: N per band (the effective state is M N).
        ssm: "s6" (Delta, B, C depend on x_t), "s4" (time-invariant), or "none" (the bands are mixed as they are).
        mixer: "input", "fixed", "softmax" or "sum", see `ScaleMixer`.
        initialization: "scale" (the coarsest band remembers longest) or "mamba" (every band alike).
        discretization: "zoh" or "euler" (Mamba's simplified Bbar = Delta B).
        diagonal: of "s4", "real" or "complex" (S4D-Lin).
        filters: start of the filters, "uniform", "haar" or "db2".
        shared_filters: one pair of filters for all levels.
        mixer_heads: groups of channels with mixer weights of their own.
        mixer_start: initial bias of the mixer; 1 starts near the plain sum of the bands.
        delta_rank: of "s6", rank of the step size's projection; ceil(D / 16) when absent.
        dt_min, dt_max: range of the initial step sizes.
        delta_0: one initial step size instead.
        skip: learned skip D^s u^s_t, absent in the paper.
        decomposition: "wavelet", or "conv": short convolutions in its place, see `ConvolutionBands`.
        gates: of "s6", what Delta, B and C of a band see: the raw "input" (the paper's) or the "band".
        drive: what the recurrence of a band is fed: the "band" (the paper's) or the raw "input".
        backend: of the decomposition and the scan.

    Raises:
        ValueError: an option out of its range.
    """

    recomputable = True

    def __init__(
        self,
        d_model: int,
        levels: int = 3,
        kernel_size: int = 4,
        state_size: int = 16,
        ssm: Literal["s6", "s4", "none"] = "s6",
        mixer: Mixer = "input",
        initialization: Initialization = "scale",
        discretization: Discretization = "zoh",
        diagonal: Literal["real", "complex"] = "real",
        filters: FilterInit = "uniform",
        shared_filters: bool = False,
        mixer_heads: int = 1,
        mixer_start: float = 1.0,
        delta_rank: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        delta_0: float | None = None,
        skip: bool = False,
        decomposition: Literal["wavelet", "conv"] = "wavelet",
        gates: Literal["input", "band"] = "input",
        drive: Literal["band", "input"] = "band",
        backend: Backend = "auto",
    ) -> None:
        super().__init__(d_model)
        if state_size < 1:
            raise InputError(f"state_size must be at least 1, got {state_size}")
        if diagonal == "complex" and ssm != "s4":
            raise InputError(f"diagonal='complex' needs ssm='s4', got ssm={ssm!r}")
        if gates not in ("input", "band") or (gates == "band" and ssm != "s6"):
            raise InputError(f"gates must be 'input', or 'band' with ssm='s6', got {gates!r} with ssm={ssm!r}")
        if drive not in ("band", "input") or (drive == "input" and ssm == "none"):
            raise InputError(f"drive must be 'band', or 'input' with an ssm, got {drive!r} with ssm={ssm!r}")
        bands = levels + 2
        self.gates, self.drive, self.backend = gates, drive, backend
        self.decomposition: MultiScaleDecomposition | ConvolutionBands
        if decomposition == "wavelet":
            self.decomposition = MultiScaleDecomposition(d_model, levels, kernel_size, filters, shared_filters, backend)
        elif decomposition == "conv":
            self.decomposition = ConvolutionBands(d_model, levels, kernel_size)
        else:
            raise InputError(f"decomposition must be 'wavelet' or 'conv', got {decomposition!r}")
        self.mixer = ScaleMixer(d_model, bands, mixer, mixer_heads, mixer_start)
        self.ssm: S6 | S4 | NoSSM
        if ssm == "s6":
            self.ssm = S6(
                d_model, bands, state_size, initialization, discretization,
                delta_rank, dt_min, dt_max, delta_0, skip, backend,
            )  # fmt: skip
        elif ssm == "s4":
            self.ssm = S4(
                d_model, bands, state_size, initialization, diagonal, discretization,
                dt_min, dt_max, delta_0, skip, backend,
            )  # fmt: skip
        elif ssm == "none":
            self.ssm = NoSSM()
        else:
            raise InputError(f"ssm must be 's6', 's4' or 'none', got {ssm!r}")

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        state: MultiScaleState | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, MultiScaleState]:
        """x (B, L, D) -> y (B, L, D), and the state if asked; lengths (B,)."""
        lengths = self.check_input(x, lengths)
        x = zero_padding(x, lengths)
        filters, ssm = (None, None) if state is None else state
        bands, filters = self.decomposition(x, lengths, filters, return_state=True)
        result = self.ssm(*self.ssm_inputs(x, bands), self.mixer(x), lengths, ssm, return_state)
        if not return_state:
            return result
        y, ssm = result
        return y, MultiScaleState(filters, ssm)

    def ssm_inputs(self, x: Tensor, bands: Tensor) -> tuple[Tensor, Tensor]:
        """What the gates see, (B, L, D) or (B, L, M, D), and what drives the recurrences, (B, L, M, D)."""
        seen = bands if self.gates == "band" else x
        return seen, x.unsqueeze(2).expand_as(bands) if self.drive == "input" else bands

    def initial_state(self, batch_size: int) -> MultiScaleState:
        """Silence before the first step."""
        return MultiScaleState(self.decomposition.initial_state(batch_size), self.ssm.initial_state(batch_size))

    def step(self, x: Tensor, state: MultiScaleState) -> tuple[Tensor, MultiScaleState]:
        """One time step: x (B, D) -> y (B, D) and the new state. For "s6" a single native call where there is one."""
        if state.ssm is None or not self._steps_natively(x) or (parameters := self.step_parameters()) is None:
            return super().step(x, state)
        if not fits(x, state.filters, state.ssm, parameters):
            return super().step(x, state)
        y, filters, states = multiscale_step(
            x,
            state.filters,
            state.ssm,
            parameters,
            heads=self.mixer.heads,
            softmax=self.mixer.mixer == "softmax",
            zoh=self.ssm.discretization == "zoh",
            delta_limits=(MIN_DELTA, MAX_DELTA),
            log_rate_limits=LOG_RATE_LIMITS,
        )
        return y, MultiScaleState(filters, states)

    def step_parameters(self) -> StepParameters | None:
        """What a native step reads; None where it is not this layer's step.

        It covers "s6" as the paper has it, float32 on a CPU, and modules that are what their classes say.
        """
        ssm, decomposition, mixer = self.ssm, self.decomposition, self.mixer
        if not isinstance(ssm, S6) or not isinstance(decomposition, MultiScaleDecomposition):
            return None
        if (self.gates, self.drive) != ("input", "band") or not (
            untouched(self, MultiScaleSSM)
            and untouched(decomposition, MultiScaleDecomposition)
            and untouched(ssm, S6)
            and untouched(ssm.projection, nn.Linear)
            and untouched(mixer, ScaleMixer)
            and (mixer.mixer not in ("input", "softmax") or untouched(mixer.projection, nn.Linear))
        ):
            return None
        low, high = decomposition.taps()
        projection, delta_weight, delta_bias, log_rate, skip = ssm.step_parameters()
        mix = mixer.step_parameters()
        parameters = StepParameters(low, high, projection, delta_weight, delta_bias, log_rate, skip, *mix)
        return parameters if ssm.projection.bias is None and parameters.readable(mixer.heads) else None

    def _steps_natively(self, x: Tensor) -> bool:
        """Without gradients, in float32 on a CPU, and not while tracing."""
        return (
            not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled(x.device.type)
            and x.dtype == torch.float32
            and choose(self.backend, x.device, x.dtype) == "cpu"
        )

    def effective_memory(self) -> Tensor:
        """How many steps each band remembers, (M,): the mean over channels and modes of 1 / (1 - |Abar|).

        From the current parameters; for "s6" at the step sizes of a zero input.

        Raises:
            ValueError: the layer has no state space models.
        """
        if isinstance(self.ssm, NoSSM):
            raise InputError("effective_memory needs state space models, this layer has ssm='none'")
        return self.ssm.effective_memory()
