"""State space models of all bands at once: S6 (selective) and S4 (time-invariant), outputs mixed over the bands."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from msssm.errors import InputError
from msssm.initialization import Initialization, initial_A, initial_delta, inverse_softplus
from msssm.scan import Backend, Discretization, lti_scan, mix_bands, multiscale_scan
from msssm.scan.delta import MAX_DELTA, MIN_DELTA, full_rank, step_size
from msssm.scan.lti.api import discretized
from msssm.untouched import untouched

# Limits of the decay rates -Re A: with those of the step sizes, |Abar| = exp(-delta rate) <= exp(-1e-7) stays below 1
# in float32, and no parameter value gives 0 / 0 or 0 * inf.
MIN_RATE, MAX_RATE = 1e-3, 1e6
LOG_RATE_LIMITS = math.log(MIN_RATE), math.log(MAX_RATE)

NORM_EPSILON = 1e-5


def _decay_rate(log_rate: Tensor) -> Tensor:
    return torch.exp(log_rate.clamp(*LOG_RATE_LIMITS))


def _wide(x: Tensor) -> Tensor:
    """Casts x to at least float32: there is no complex bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _memory(delta: Tensor, rate: Tensor) -> Tensor:
    """Mean over channels and modes of 1 / (1 - exp(-delta rate)), in steps. delta (M, D), rate (M, D, N) -> (M,)."""
    return (-1 / torch.expm1(-delta.unsqueeze(-1) * rate)).mean((1, 2))


def _mixed(y: Tensor, mix: Tensor) -> Tensor:
    """Sum over bands of one step, y (B, M, D) and mix (B, M, H) -> (B, D)."""
    if mix.shape[-1] == 1:
        return (y * mix).sum(1)
    return (y.unflatten(-1, (mix.shape[-1], -1)) * mix.unsqueeze(-1)).sum(1).flatten(1)


class S6(nn.Module):
    """Selective state space models, one per band (MS-SSM, section 3.2): inputs u^s, selection by the raw input x.

        Delta^s_t = softplus(W_2 W_1 x_t + b),   B^s_t = W_B x_t,   C^s_t = W_C x_t,   A^s = -exp(log_rate)

    Each band has its own projections; the step size has Mamba's low rank (Gu & Dao 2023, section 3.6).

    Args:
        d_model: D, channels of the input and of each band.
        bands: M.
        state_size: N per band.
        initialization: A, "scale" or "mamba".
        discretization: "zoh" or "euler".
        dt_rank: rank R of the step size's projection; None for ceil(D / 16).
        dt_min, dt_max: range of the initial step sizes at zero input, log-uniform.
        dt_init: initial value of all step sizes, instead of a range.
        skip: add a learned D^s u^s_t, initially 1.
        selection_norm: divide W_1 x_t, B^s_t and C^s_t by their root mean squares (over R, N and N numbers), as Jamba
            does (Lieber et al. 2024, section 6.4), here without weights.
        backend: Backend of the scan, see `multiscale_scan`.
    """

    # Without weight decay, and trained at the learning rate of the SSM, see `msssm.param_groups`.
    ssm_parameters = ("log_rate", "delta_bias", "skip")

    def __init__(
        self,
        d_model: int,
        bands: int,
        state_size: int,
        initialization: Initialization = "scale",
        discretization: Discretization = "zoh",
        dt_rank: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: float | None = None,
        skip: bool = False,
        selection_norm: bool = False,
        backend: Backend = "auto",
    ) -> None:
        """Builds the parameters of all bands. Raises ValueError for an initial value out of its range."""
        super().__init__()
        self.bands, self.state_size = bands, state_size
        self.discretization, self.selection_norm, self.backend = discretization, selection_norm, backend
        self.rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        A = initial_A(bands, state_size, initialization)
        self.log_rate = nn.Parameter(torch.log(-A).unsqueeze(1).repeat(1, d_model, 1))
        self.projection = nn.Linear(d_model, bands * (self.rank + 2 * state_size), bias=False)
        self.delta_weight = nn.Parameter(torch.empty(bands, self.rank, d_model).uniform_(-1, 1) * self.rank**-0.5)
        self.delta_bias = nn.Parameter(inverse_softplus(initial_delta((bands, d_model), dt_min, dt_max, dt_init)))
        self.skip = nn.Parameter(torch.ones(bands, d_model)) if skip else None

    def forward(
        self,
        x: Tensor,
        bands: Tensor,
        mix: Tensor,
        lengths: Tensor | None = None,
        state: Tensor | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Runs the recurrences and mixes their outputs.

        Args:
            x: what Delta, B and C are computed from, (B, L, D) for all bands or (B, L, M, D) for each.
            bands: SSM inputs u, (B, L, M, D).
            mix: weights of the scale mixer, (B, L, M, H).
            lengths: true length of each row, (B,).
            state: (B, M, D, N), zeros if None.
            return_state: also return the state after the last step.

        Returns:
            y (B, L, D), with `return_state` also the state (B, M, D, N).
        """
        low_rank, B, C = self.selection(x)
        return multiscale_scan(
            bands,
            low_rank,
            self.diagonal(),
            B,
            C,
            mix,
            self.skip,
            delta_weight=self.delta_weight,
            delta_bias=self.delta_bias,
            lengths=lengths,
            initial_state=state,
            return_state=return_state,
            discretization=self.discretization,
            backend=self.backend,
        )

    def initial_state(self, batch_size: int) -> Tensor:
        """Zeros, (B, M, D, N), in the memory layout of a scan's last state: channels innermost."""
        bands, channels, states = self.log_rate.shape
        return self.log_rate.new_zeros(batch_size, bands, states, channels).transpose(2, 3)

    def selection(self, x: Tensor) -> tuple[Tensor, ...]:
        """Low rank of Delta (B, L, M, R), and B and C (B, L, M, N), for an x as in `forward`."""
        selected = self._project(x).split((self.rank, self.state_size, self.state_size), dim=-1)
        if not self.selection_norm:
            return selected
        return tuple(nn.functional.rms_norm(each, each.shape[-1:], eps=NORM_EPSILON) for each in selected)

    def _project(self, x: Tensor) -> Tensor:
        """Low rank of Delta, B and C of each band, (B, L, M, R + 2 N)."""
        if x.ndim == 3:
            return self.projection(x).unflatten(-1, (self.bands, -1))
        if untouched(self.projection, nn.Linear) and self.projection.bias is None:
            return torch.einsum("blmd,mrd->blmr", x, self.projection.weight.unflatten(0, (self.bands, -1)))
        # A replaced projection can only be called whole: project each band's input for all bands, keep the diagonal.
        return self.projection(x).unflatten(-1, (self.bands, -1)).diagonal(dim1=2, dim2=3).movedim(-1, 2)

    def step_constants(self) -> tuple[Tensor, ...]:
        """What a step computes from the parameters alone: A and 1 / A, (M, D, N), and the bias of Delta (M, 1, D)."""
        A = self.diagonal()
        return A, 1 / A, self.delta_bias.unsqueeze(1)

    def step(
        self, x: Tensor, bands: Tensor, mix: Tensor, state: Tensor, constants: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Runs one time step: x (B, D), bands (B, M, D), mix (B, M, H) to y (B, D) and the new state."""
        A, inverse, bias = constants
        low_rank, B, C = (each.squeeze(1) for each in self.selection(x.unsqueeze(1)))
        projected = torch.baddbmm(bias, low_rank.transpose(0, 1), self.delta_weight).transpose(0, 1)
        delta = nn.functional.softplus(projected).clamp(MIN_DELTA, MAX_DELTA).unsqueeze(-1)
        exponent = delta * A
        gain = torch.expm1(exponent) * inverse if self.discretization == "zoh" else delta
        drive = gain * (B.unsqueeze(2) * bands.unsqueeze(-1))
        state = torch.addcmul(drive, torch.exp(exponent), state.to(A.dtype))
        y = torch.matmul(state, C.unsqueeze(-1)).squeeze(-1)
        return _mixed(y if self.skip is None else torch.addcmul(y, self.skip, bands), mix), state

    def diagonal(self) -> Tensor:
        """Diagonal A (M, D, N), negative."""
        return -_decay_rate(self.log_rate)

    def delta(self, x: Tensor | None = None) -> Tensor:
        """Step sizes Delta (B, L, M, D) for an x as in `forward`; (M, D) at zero input if x is None."""
        if x is None:
            return step_size(torch.zeros_like(self.delta_bias), self.delta_bias)
        return step_size(full_rank(self.selection(x)[0], self.delta_weight), self.delta_bias)

    def effective_memory(self) -> Tensor:
        """Memory of each band in steps, (M,), at the step sizes of a zero input."""
        return _memory(self.delta(), -self.diagonal()).detach()


class S4(nn.Module):
    """Time-invariant diagonal state space models, one per band (S4D, Gu et al. 2022; MS-SSM(S4)).

    Only the product of B and C matters to a time-invariant model: C is learned and B is 1, as in S4D.

    Args:
        d_model: D, channels of each band.
        bands: M.
        state_size: N per band, in real numbers: a complex diagonal has N / 2 conjugate pairs.
        initialization: "scale" or "mamba", of a real diagonal. A complex one starts as S4D-Lin, -1/2 + i pi n, over
            the union of the bands with the lowest frequencies in the coarsest ("scale"), or alike in every band
            ("mamba").
        diagonal: "real" or "complex".
        discretization: "zoh" or "euler".
        dt_min, dt_max, dt_init: initial step sizes, as in `S6`.
        skip: add a learned D^s u^s_t, initially 1.
        backend: Backend of the scan, see `lti_scan`.
    """

    ssm_parameters = ("log_rate", "frequency", "log_delta", "skip")

    def __init__(
        self,
        d_model: int,
        bands: int,
        state_size: int,
        initialization: Initialization = "scale",
        diagonal: Literal["real", "complex"] = "real",
        discretization: Discretization = "zoh",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: float | None = None,
        skip: bool = False,
        backend: Backend = "auto",
    ) -> None:
        """Builds the parameters of all bands.

        Raises:
            ValueError: the diagonal is unknown, the state size of a complex one is odd, or an initial value is out of
                its range.
        """
        super().__init__()
        if diagonal not in ("real", "complex"):
            raise InputError(f"diagonal must be 'real' or 'complex', got {diagonal!r}")
        self.discretization, self.backend = discretization, backend
        self.frequency: nn.Parameter | None = None
        if diagonal == "complex":
            if state_size % 2:
                raise InputError(
                    f"a complex diagonal has state_size / 2 pairs: state_size must be even, got {state_size}"
                )
            pairs = state_size // 2
            order = -initial_A(bands, pairs, initialization) - 1
            rate = torch.full((bands, d_model, pairs), 0.5)
            self.frequency = nn.Parameter(math.pi * order.unsqueeze(1).repeat(1, d_model, 1))
            self.C = nn.Parameter(torch.randn(bands, d_model, pairs, 2) * 0.5**0.5)
        else:
            rate = -initial_A(bands, state_size, initialization).unsqueeze(1).repeat(1, d_model, 1)
            self.C = nn.Parameter(torch.randn(bands, d_model, state_size))
        self.log_rate = nn.Parameter(torch.log(rate))
        self.log_delta = nn.Parameter(torch.log(initial_delta((bands, d_model), dt_min, dt_max, dt_init)))
        self.skip = nn.Parameter(torch.ones(bands, d_model)) if skip else None

    def forward(
        self,
        x: Tensor,
        bands: Tensor,
        mix: Tensor,
        lengths: Tensor | None = None,
        state: Tensor | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Same as `S6.forward`, but x is not used, and the state is complex if the diagonal is."""
        with torch.autocast(bands.device.type, enabled=False):
            return lti_scan(
                bands,
                self.delta(),
                self.diagonal(),
                self._C(),
                mix,
                self.skip,
                lengths=lengths,
                initial_state=state,
                return_state=return_state,
                discretization=self.discretization,
                backend=self.backend,
            )

    def step_constants(self) -> tuple[Tensor, ...]:
        """What a step computes from the parameters alone: decay, gain and output weights of the states, (M, D, N).

        The weights of a complex diagonal are real, (M, D, N / 2, 2), for the real and imaginary part of each state.
        """
        rate, gain, _ = discretized(self.delta(), self.diagonal(), self._C(), self.discretization)
        weight = self._C()
        if weight.is_complex():
            weight = torch.view_as_real(2 * weight.conj().resolve_conj())
        return torch.exp(rate), gain, weight

    def step(
        self, x: Tensor, bands: Tensor, mix: Tensor, state: Tensor, constants: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Runs one time step: bands (B, M, D) and mix (B, M, H) to y (B, D) and the new state; x is not used."""
        decay, gain, weight = constants
        state = torch.addcmul(gain * bands.unsqueeze(-1), decay, state.to(decay.dtype))
        y = (state * weight).sum(-1) if self.frequency is None else (torch.view_as_real(state) * weight).sum((-2, -1))
        return _mixed(y if self.skip is None else torch.addcmul(y, self.skip, bands), mix), state

    def _C(self) -> Tensor:
        """Output weights, complex for a complex diagonal."""
        return self.C if self.frequency is None else torch.view_as_complex(_wide(self.C).contiguous())

    def initial_state(self, batch_size: int) -> Tensor:
        """Zeros, (B, M, D, N), or complex (B, M, D, N / 2)."""
        dtype = (
            self.log_rate.dtype if self.frequency is None else torch.promote_types(self.log_rate.dtype, torch.complex64)
        )
        return self.log_rate.new_zeros(batch_size, *self.log_rate.shape, dtype=dtype)

    def diagonal(self) -> Tensor:
        """Diagonal A (M, D, N), or complex (M, D, N / 2), with negative real part."""
        A = -_decay_rate(self.log_rate)
        return A if self.frequency is None else torch.complex(_wide(A), _wide(self.frequency))

    def effective_memory(self) -> Tensor:
        """Memory of each band in steps, (M,)."""
        return _memory(self.delta(), _decay_rate(self.log_rate)).detach()

    def delta(self, x: Tensor | None = None) -> Tensor:
        """Step sizes Delta (M, D), the same for every x."""
        return torch.exp(self.log_delta.clamp(math.log(MIN_DELTA), math.log(MAX_DELTA)))


class NoSSM(nn.Module):
    """Mix of the bands themselves: MS-SSM without its state space models (MS-SSM, table 5)."""

    def forward(
        self,
        x: Tensor,
        bands: Tensor,
        mix: Tensor,
        lengths: Tensor | None = None,
        state: None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, None]:
        """Mixes the bands; arguments as in `S6.forward`, of which only bands and mix are used."""
        mixed = mix_bands(bands, mix).to(bands.dtype)
        return (mixed, None) if return_state else mixed

    def step_constants(self) -> tuple[Tensor, ...]:
        """Nothing is computed in advance."""
        return ()

    def step(
        self, x: Tensor, bands: Tensor, mix: Tensor, state: None, constants: tuple[Tensor, ...]
    ) -> tuple[Tensor, None]:
        """Mixes the bands of one time step, (B, M, D), with (B, M, H)."""
        return _mixed(bands, mix), None

    def initial_state(self, batch_size: int) -> None:
        """None: there is no state."""
