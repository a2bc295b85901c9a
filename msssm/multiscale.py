"""The MS-SSM layer: decompose the sequence, run one state space model per band, mix the scales."""

from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from msssm.decomposition import ConvolutionBands, FilterInit, MultiScaleDecomposition
from msssm.errors import InputError
from msssm.fused import fused_scan
from msssm.initialization import Initialization
from msssm.layer import SequenceLayer
from msssm.padding import mask_padding
from msssm.scale_mixer import Mixer, ScaleMixer
from msssm.scan import Backend, Discretization
from msssm.ssm import S4, S6, NoSSM
from msssm.untouched import untouched


class MultiScaleState(NamedTuple):
    """State that a layer carries from one chunk to the next.

    Attributes:
        conv_state: for each level s, the last values that its filters see, (B, (K - 1) 2^(s-1), D).
        ssm_state: states of the state space models, (B, M, D, N); None for ssm="none".
    """

    conv_state: tuple[Tensor, ...]
    ssm_state: Tensor | None


class MultiScaleSSM(SequenceLayer):
    """The multi-scale state space model (Karami et al. 2025, arXiv 2512.23824, section 3).

    With bands u^0 = x, u^1..u^S = details, u^{S+1} = approximation of the learned wavelet transform,

        h^s_t = exp(Delta^s A^s) h^s_{t-1} + Bbar^s u^s_t,   y^s_t = <C^s, h^s_t>,   z_t = sum_s E_t[s] y^s_t

    `msssm.minimal` computes the same in one file of plain torch.

    The model:

    Args:
        d_model: D, channels.
        levels: S; there are M = S + 2 bands.
        kernel_size: K, taps of the filters.
        state_size: N per band (the effective state is M N).
        ssm: "s6" (Delta, B, C depend on x_t), "s4" (time-invariant), or "none" (the bands themselves are mixed).
        mixer: "input", "fixed", "softmax" or "sum", see `ScaleMixer`.
        initialization: "scale" (the coarsest band remembers longest) or "mamba" (all bands alike).
        discretization: "zoh" or "euler" (Mamba's simplified Bbar = Delta B).

    Choices that the paper leaves open:

    Args:
        diagonal: "real" or, for "s4", "complex" (S4D-Lin).
        filter_init: "uniform", "haar" or "db2".
        shared_filters: one pair of filters for all levels.
        mixer_heads: groups of channels with mixer weights of their own.
        mixer_init: initial bias of the mixer; 1 starts near the plain sum of the bands.
        dt_rank: for "s6", rank of the projection to Delta; None for ceil(D / 16).
        dt_min: least initial Delta.
        dt_max: greatest initial Delta.
        dt_init: initial value of all Delta, instead of a range.
        skip: learned skip D^s u^s_t, absent in the paper.
        selection_norm: for "s6", RMS norm of Delta's low rank, B and C, absent in the paper, see `S6`.

    Its ablations (table 5):

    Args:
        decomposition: "wavelet", or "conv" for short convolutions instead, see `ConvolutionBands`.
        selective_input: for "s6", what Delta, B and C of a band are computed from: the raw "input" (the paper's) or
            the "band".
        ssm_input: input of a band's recurrence: the "band" (the paper's) or the raw "input".

    Where it runs:

    Args:
        backend: Backend of the decomposition and the scan, see `msssm.scan.multiscale_scan`.
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
        filter_init: FilterInit = "uniform",
        shared_filters: bool = False,
        mixer_heads: int = 1,
        mixer_init: float = 1.0,
        dt_rank: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: float | None = None,
        skip: bool = False,
        selection_norm: bool = False,
        decomposition: Literal["wavelet", "conv"] = "wavelet",
        selective_input: Literal["input", "band"] = "input",
        ssm_input: Literal["band", "input"] = "band",
        backend: Backend = "auto",
    ) -> None:
        """Builds decomposition, state space models and mixer. Raises ValueError for an option out of its range."""
        super().__init__(d_model)
        if state_size < 1:
            raise InputError(f"state_size must be at least 1, got {state_size}")
        if diagonal == "complex" and ssm != "s4":
            raise InputError(f"diagonal='complex' needs ssm='s4', got ssm={ssm!r}")
        if selection_norm and ssm != "s6":
            raise InputError(f"selection_norm needs ssm='s6', got ssm={ssm!r}")
        if selective_input not in ("input", "band") or (selective_input == "band" and ssm != "s6"):
            raise InputError(
                f"selective_input must be 'input', or 'band' with ssm='s6', got {selective_input!r} with ssm={ssm!r}"
            )
        if ssm_input not in ("band", "input") or (ssm_input == "input" and ssm == "none"):
            raise InputError(f"ssm_input must be 'band', or 'input' with an ssm, got {ssm_input!r} with ssm={ssm!r}")
        bands = levels + 2
        self.selective_input, self.ssm_input, self.backend = selective_input, ssm_input, backend
        self.decomposition: MultiScaleDecomposition | ConvolutionBands
        if decomposition == "wavelet":
            self.decomposition = MultiScaleDecomposition(
                d_model, levels, kernel_size, filter_init=filter_init, shared=shared_filters, backend=backend
            )
        elif decomposition == "conv":
            self.decomposition = ConvolutionBands(d_model, levels, kernel_size)
        else:
            raise InputError(f"decomposition must be 'wavelet' or 'conv', got {decomposition!r}")
        self.mixer = ScaleMixer(d_model, bands, mode=mixer, heads=mixer_heads, init=mixer_init)
        options: dict[str, Any] = {
            "initialization": initialization,
            "discretization": discretization,
            "dt_min": dt_min,
            "dt_max": dt_max,
            "dt_init": dt_init,
            "skip": skip,
            "backend": backend,
        }
        self.ssm: S6 | S4 | NoSSM
        if ssm == "s6":
            self.ssm = S6(d_model, bands, state_size, dt_rank=dt_rank, selection_norm=selection_norm, **options)
        elif ssm == "s4":
            self.ssm = S4(d_model, bands, state_size, diagonal=diagonal, **options)
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
        """Maps x (B, L, D) to y (B, L, D), with `return_state` also the new state; lengths (B,)."""
        lengths = self.check_input(x, lengths)
        x = mask_padding(x, lengths)
        conv_state, ssm_state = (None, None) if state is None else state
        mix = self.mixer(x)
        result = None
        if self._is_the_papers():
            result = fused_scan(self.decomposition, self.ssm, x, mix, lengths, conv_state, ssm_state, return_state)
        if result is None:
            split = self.decomposition(x, lengths, conv_state, return_state)
            bands, conv_state = split if return_state else (split, ())
            output = self.ssm(*self.ssm_inputs(x, bands), mix, lengths, ssm_state, return_state)
            y, ssm_state = output if return_state else (output, None)
        else:
            y, conv_state, ssm_state = result
        return (y, MultiScaleState(conv_state, ssm_state)) if return_state else y

    def _is_the_papers(self) -> bool:
        """Whether selection and recurrence have the paper's inputs."""
        return (self.selective_input, self.ssm_input) == ("input", "band")

    def ssm_inputs(self, x: Tensor, bands: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of Delta, B and C, (B, L, D) or (B, L, M, D), and inputs of the recurrences, (B, L, M, D)."""
        selective = bands if self.selective_input == "band" else x
        return selective, x.unsqueeze(2).expand_as(bands) if self.ssm_input == "input" else bands

    def initial_state(self, batch_size: int) -> MultiScaleState:
        """State before the first step: zeros."""
        return MultiScaleState(self.decomposition.initial_state(batch_size), self.ssm.initial_state(batch_size))

    def step_constants(self) -> tuple[Any, ...] | None:
        """Decays, gains and filters; None if a step is a run over one position, as with hooks on its parts."""
        parts_are_known = (
            self._is_the_papers()
            and untouched(self, MultiScaleSSM)
            and untouched(self.decomposition, MultiScaleDecomposition)
            and any(untouched(self.ssm, kind) for kind in (S6, S4, NoSSM))
            and all(x.dtype in (torch.float32, torch.float64) for x in self.parameters(recurse=True))
        )
        if not parts_are_known or not isinstance(self.decomposition, MultiScaleDecomposition):
            return None
        return self.decomposition.step_constants(), self.ssm.step_constants()

    def step(
        self, x: Tensor, state: MultiScaleState, constants: tuple[Any, ...] | None = None
    ) -> tuple[Tensor, MultiScaleState]:
        """Runs one time step: x (B, D) to y (B, D) and the new state."""
        constants = self.step_constants() if constants is None else constants
        if constants is None or torch.is_autocast_enabled(x.device.type):
            return super().step(x, state)
        filters, decays = constants
        decomposition = cast(MultiScaleDecomposition, self.decomposition)
        bands, conv_state = decomposition.step(x, state.conv_state, filters)
        y, ssm_state = self.ssm.step(x, bands, self.mixer(x), state.ssm_state, decays)  # type: ignore[arg-type]
        return y, MultiScaleState(conv_state, ssm_state)

    def effective_memory(self) -> Tensor:
        """Memory of each band in steps, (M,): the mean over channels and modes of 1 / (1 - |Abar|).

        It is computed from the current parameters; for "s6", at the step sizes of a zero input.

        Raises:
            ValueError: the layer has no state space models.
        """
        if isinstance(self.ssm, NoSSM):
            raise InputError("effective_memory needs state space models, this layer has ssm='none'")
        return self.ssm.effective_memory()
