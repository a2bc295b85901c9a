"""Mamba: a gated block around one selective state space model."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msssm.decomposition import check_history
from msssm.layer import SequenceLayer
from msssm.padding import last_positions, mask_padding
from msssm.scan import Backend
from msssm.scan.decomposition.torch import dilated_convolution
from msssm.ssm import S6


class MambaState(NamedTuple):
    """The last K - 1 inputs of the convolution, (B, K - 1, E), and the state of the SSM, (B, 1, E, N)."""

    convolution: Tensor
    ssm: Tensor


class Mamba(SequenceLayer):
    """Mamba's block without norm and residual (Gu & Dao 2023, figure 3): Bbar = Delta B, D initially 1.

        u, g = W_in x;   v = silu(conv(u));   y = W_out (S6(v) * silu(g)),   E = expand * D channels inside

    Args:
        d_model: D.
        state_size: N.
        expand: E / D.
        kernel_size: taps of the causal depthwise convolution.
        dt_min: least initial step size.
        dt_max: greatest initial step size.
        selection_norm: RMS norm of Delta's low rank, B and C, absent in Mamba, see `msssm.ssm.S6`.
        backend: Backend of the scan.
    """

    recomputable = True

    def __init__(
        self,
        d_model: int,
        state_size: int = 16,
        expand: int = 2,
        kernel_size: int = 4,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        selection_norm: bool = False,
        backend: Backend = "auto",
    ) -> None:
        """Builds projections, convolution and SSM. Raises ValueError for an option out of its range."""
        super().__init__(d_model)
        inner = expand * d_model
        self.kernel_size, self.inner = kernel_size, inner
        self.input = nn.Linear(d_model, 2 * inner, bias=False)
        scale = kernel_size**-0.5
        self.taps = nn.Parameter(torch.empty(kernel_size, inner).uniform_(-scale, scale))
        self.bias = nn.Parameter(torch.zeros(inner))
        rank = -(-d_model // 16)
        self.ssm = S6(
            inner,
            1,
            state_size,
            "mamba",
            "euler",
            rank,
            dt_min,
            dt_max,
            skip=True,
            selection_norm=selection_norm,
            backend=backend,
        )
        self.output = nn.Linear(inner, d_model, bias=False)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        state: MambaState | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, MambaState]:
        """Maps x (B, L, D) to y (B, L, D), with `return_state` also the new state; lengths (B,)."""
        lengths = self.check_input(x, lengths)
        u, gate = self.input(mask_padding(x, lengths)).chunk(2, dim=-1)
        silence = self.initial_state(len(x))
        history, ssm_state = silence if state is None else state
        check_history((history,), (silence.convolution,), x)
        extended = torch.cat((history.to(u.dtype), u), dim=1)
        v = F.silu(dilated_convolution(extended, self.taps, 1) + self.bias)
        one_band = v.new_ones(()).expand(*v.shape[:2], 1)
        y, ssm_state = self.ssm(v, v.unsqueeze(2), one_band, lengths, ssm_state, return_state=True)
        y = self.output(y * F.silu(gate))
        return (
            (y, MambaState(last_positions(extended, lengths, self.kernel_size - 1), ssm_state)) if return_state else y
        )

    def initial_state(self, batch_size: int) -> MambaState:
        """State before the first step: zeros."""
        return MambaState(
            self.taps.new_zeros(batch_size, self.kernel_size - 1, self.inner),
            self.ssm.initial_state(batch_size),
        )

    def effective_memory(self) -> Tensor:
        """Memory in steps, (1,), see `msssm.MultiScaleSSM.effective_memory`."""
        return self.ssm.effective_memory()
