"""S4D: one time-invariant diagonal state space model per channel."""

from typing import Literal

from torch import Tensor

from msssm.layer import SequenceLayer
from msssm.padding import mask_padding
from msssm.scan import Discretization
from msssm.ssm import S4


class S4D(SequenceLayer):
    """S4D-Lin (Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models").

        y = 2 Re <C, h> + D x,   A_n = -1/2 + i pi n,   n = 0..N/2-1

    This is the causal form. `msssm.block` has the block's nonlinearity and channel mixing.

    Args:
        d_model: D, channels.
        state_size: N real numbers of state (N / 2 complex pairs).
        diagonal: "complex" (S4D-Lin) or "real" (A_n = -(n + 1)).
        discretization: "zoh" or "euler".
        dt_min: least initial step size.
        dt_max: greatest initial step size.
    """

    def __init__(
        self,
        d_model: int,
        state_size: int = 64,
        diagonal: Literal["real", "complex"] = "complex",
        discretization: Discretization = "zoh",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ) -> None:
        """Builds the SSM. Raises ValueError for an option out of its range."""
        super().__init__(d_model)
        self.ssm = S4(d_model, 1, state_size, "mamba", diagonal, discretization, dt_min, dt_max, skip=True)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        state: Tensor | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Maps x (B, L, D) to y (B, L, D), with `return_state` also the state (B, 1, D, N / 2); lengths (B,)."""
        lengths = self.check_input(x, lengths)
        x = mask_padding(x, lengths)
        one_band = x.new_ones(()).expand(*x.shape[:2], 1)
        result: Tensor | tuple[Tensor, Tensor] = self.ssm(x, x.unsqueeze(2), one_band, lengths, state, return_state)
        return result

    def initial_state(self, batch_size: int) -> Tensor:
        """State before the first step: zeros."""
        return self.ssm.initial_state(batch_size)

    def effective_memory(self) -> Tensor:
        """Memory in steps, (1,), see `msssm.MultiScaleSSM.effective_memory`."""
        return self.ssm.effective_memory()
