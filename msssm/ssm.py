"""Arrays of state space models, one per band: S6 (selective) and S4 (time-invariant). Outputs leave mixed."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from msssm.errors import InputError
from msssm.initialization import Initialization, initial_A, initial_delta, inverse_softplus
from msssm.scan import Backend, Discretization, lti_scan, mix_bands, multiscale_scan
from msssm.scan.step_size import MAX_DELTA, MIN_DELTA, full_rank, step_size
from msssm.untouched import untouched

# Limits of the decay rates -Re A: with those of the step sizes, |Abar| = exp(-delta rate) <= exp(-1e-7) stays below 1
# in float32, and no parameter value gives 0 / 0 or 0 * inf.
MIN_RATE, MAX_RATE = 1e-3, 1e6
LOG_RATE_LIMITS = math.log(MIN_RATE), math.log(MAX_RATE)


def _decay_rate(log_rate: Tensor) -> Tensor:
    return torch.exp(log_rate.clamp(*LOG_RATE_LIMITS))


def _wide(x: Tensor) -> Tensor:
    """In at least float32: there are no complex numbers in bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _memory(delta: Tensor, rate: Tensor) -> Tensor:
    """Mean over channels and modes of 1 / (1 - exp(-delta rate)), in steps. delta (M, D), rate (M, D, N) -> (M,)."""
    return (-1 / torch.expm1(-delta.unsqueeze(-1) * rate)).mean((1, 2))


class S6(nn.Module):
    """Selective state space models, one per band, driven by the band and gated by the raw input (MS-SSM, 3.2).

        Delta^s_t = softplus(W_2 W_1 x_t + b),   B^s_t = W_B x_t,   C^s_t = W_C x_t,   A^s = -exp(log_rate)

    with projections of its own for each band; the step size has Mamba's low rank (Gu & Dao 2023, section 3.6).

    Args:
        d_model: D, channels of the input and of each band.
        bands: M.
        state_size: N per band.
        initialization: A, "scale" or "mamba".
        discretization: "zoh" or "euler".
        dt_rank: rank of the step size's projection; ceil(D / 16) when absent.
        dt_min, dt_max: the step sizes at zero input start log-uniform in this range, in steps of the sequence.
        dt_init: one start for all step sizes instead.
        skip: add a learned D^s u^s_t, starting at 1.
        backend: of the scan.
    """

    # Left out of weight decay, and trained at the learning rate of the SSM.
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
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.bands, self.state_size = bands, state_size
        self.discretization, self.backend = discretization, backend
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
        """x (B, L, D), bands (B, L, M, D), mix (B, L, M, H) -> mixed outputs (B, L, D) and the state (B, M, D, N).

        With x (B, L, M, D), the gates of each band see an input of their own.
        """
        N = self.state_size
        low_rank, B, C = self._project(x).split((self.rank, N, N), dim=-1)
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
        # Laid out as the scan leaves states, channels innermost.
        bands, channels, states = self.log_rate.shape
        return self.log_rate.new_zeros(batch_size, bands, states, channels).transpose(2, 3)

    def _project(self, x: Tensor) -> Tensor:
        """Low rank of Delta, B and C of each band, (B, L, M, R + 2 N)."""
        if x.ndim == 3:
            return self.projection(x).unflatten(-1, (self.bands, -1))
        if untouched(self.projection, nn.Linear) and self.projection.bias is None:
            return torch.einsum("blmd,mrd->blmr", x, self.projection.weight.unflatten(0, (self.bands, -1)))
        # All projections of all bands, of which each band takes its own.
        return self.projection(x).unflatten(-1, (self.bands, -1)).diagonal(dim1=2, dim2=3).movedim(-1, 2)

    def step_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """What a native step reads: projection, delta_weight, delta_bias, log_rate, skip."""
        return self.projection.weight, self.delta_weight, self.delta_bias, self.log_rate, self.skip

    def diagonal(self) -> Tensor:
        """A (M, D, N), negative."""
        return -_decay_rate(self.log_rate)

    def delta(self, x: Tensor | None = None) -> Tensor:
        """Delta (B, L, M, D) of what the gates see, x as in `forward`; without one (M, D), those of a zero input."""
        if x is None:
            return step_size(torch.zeros_like(self.delta_bias), self.delta_bias)
        low_rank = self._project(x)[..., : self.rank]
        return step_size(full_rank(low_rank, self.delta_weight), self.delta_bias)

    def effective_memory(self) -> Tensor:
        """(M,) steps, at the step sizes of a zero input."""
        return _memory(self.delta(), -self.diagonal()).detach()


class S4(nn.Module):
    """Time-invariant diagonal state space models, one per band (S4D, Gu et al. 2022; MS-SSM(S4)).

    B and C enter a time-invariant model only through their product: C is learned and B is 1, as in S4D.

    Args:
        d_model: D, channels of each band.
        bands: M.
        state_size: N per band; real numbers of state, so a complex diagonal has N / 2 conjugate pairs.
        initialization: "scale" or "mamba", of the real diagonal. A complex diagonal starts as S4D-Lin,
            -1/2 + i pi n, over the union of the bands, the coarsest with the lowest frequencies ("scale"),
            or in every band alike ("mamba").
        diagonal: "real" or "complex".
        discretization: "zoh" or "euler".
        dt_min, dt_max, dt_init: start of the step sizes, as in `S6`.
        skip: add a learned D^s u^s_t, starting at 1.

    Raises:
        ValueError: an odd state size with a complex diagonal, or an unknown diagonal.
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
        """Same as `S6.forward`; the raw input x is not used, and the state is complex if the diagonal is."""
        with torch.autocast(bands.device.type, enabled=False):
            C: Tensor = self.C if self.frequency is None else torch.view_as_complex(_wide(self.C).contiguous())
            return lti_scan(
                bands,
                self.delta(),
                self.diagonal(),
                C,
                mix,
                self.skip,
                lengths=lengths,
                initial_state=state,
                return_state=return_state,
                discretization=self.discretization,
                backend=self.backend,
            )

    def initial_state(self, batch_size: int) -> Tensor:
        dtype = (
            self.log_rate.dtype if self.frequency is None else torch.promote_types(self.log_rate.dtype, torch.complex64)
        )
        return self.log_rate.new_zeros(batch_size, *self.log_rate.shape, dtype=dtype)

    def diagonal(self) -> Tensor:
        """A (M, D, N), or (M, D, N / 2) complex, of negative real part."""
        A = -_decay_rate(self.log_rate)
        return A if self.frequency is None else torch.complex(_wide(A), _wide(self.frequency))

    def effective_memory(self) -> Tensor:
        """(M,) steps."""
        return _memory(self.delta(), _decay_rate(self.log_rate)).detach()

    def delta(self, x: Tensor | None = None) -> Tensor:
        """Delta (M, D), whatever the input."""
        return torch.exp(self.log_delta.clamp(math.log(MIN_DELTA), math.log(MAX_DELTA)))


class NoSSM(nn.Module):
    """The bands mixed as they are: MS-SSM without its state space models (MS-SSM, table 5)."""

    def forward(
        self,
        x: Tensor,
        bands: Tensor,
        mix: Tensor,
        lengths: Tensor | None = None,
        state: None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, None]:
        """Same as `S6.forward`, without a state."""
        mixed = mix_bands(bands, mix).to(bands.dtype)
        return (mixed, None) if return_state else mixed

    def initial_state(self, batch_size: int) -> None:
        return None
