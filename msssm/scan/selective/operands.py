"""The operands of a selective scan, described once for all its forms."""

from typing import NamedTuple

import torch
from torch import Tensor


class Operands(NamedTuple):
    """Tensors of a selective scan, as `msssm.scan.multiscale_scan` describes them.

    With filters, u is the input (B, L, D) of a layer, of which the native scan makes the bands itself.
    """

    u: Tensor  # (B, L, M, D)
    delta: Tensor  # (B, L, M, D), or (B, L, M, R) with a delta_weight
    A: Tensor  # (M, D, N)
    B: Tensor  # (B, L, M, N)
    C: Tensor  # (B, L, M, N)
    mix: Tensor  # (B, L, M, H)
    D: Tensor | None = None  # (M, D)
    delta_weight: Tensor | None = None  # (M, R, D)
    delta_bias: Tensor | None = None  # (M, D)
    lengths: Tensor | None = None  # (B,)
    state: Tensor | None = None  # (B, M, D, N)
    low: Tensor | None = None  # filters (S, K, D)
    high: Tensor | None = None  # (S, K, D)
    history: Tensor | None = None  # (B, (K - 1) (2^S - 1), D)

    def to(self, dtype: torch.dtype, *apart: str) -> "Operands":
        """The floating operands in this dtype, but those named."""

        def cast(name: str, x: Tensor | None) -> Tensor | None:
            return x if x is None or name == "lengths" or name in apart else x.to(dtype)

        return self._replace(**{name: cast(name, x) for name, x in self._asdict().items()})  # type: ignore[arg-type]

    def turned(self) -> "Operands":
        """The operands with A (M, N, D) and states (B, M, N, D), as the kernels read and write them, and back."""
        state = None if self.state is None else self.state.transpose(2, 3)
        return self._replace(A=self.A.transpose(1, 2), state=state)
