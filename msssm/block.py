"""One residual block around a sequence layer."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msssm.errors import InputError
from msssm.layer import SequenceLayer, State
from msssm.norm import Norm, SequenceNorm
from msssm.recompute import recomputable, recomputed
from msssm.untouched import untouched


class Block(SequenceLayer):
    """Residual block of MultiresNet (Shi et al. 2023), to which the published settings belong.

        post-norm:  y = norm(x + drop(f(x)))        pre-norm:  y = x + drop(f(norm(x)))
        f = sequence layer -> GELU -> linear D -> 2D -> GLU,   or the sequence layer alone (glu=False)

    `drop` is stochastic in training alone: `dropout`, then stochastic depth (Huang et al. 2016, each row on its own).
    What is kept is divided by its probability. Each call draws anew, so each chunk and each step.

    Args:
        layer: the sequence layer; its width is the block's.
        norm: "batch" or "layer".
        prenorm: normalise before the layer instead of after the residual sum.
        glu: mix channels after the layer; Mamba's own block does so inside.
        dropout: probability that a whole channel of a row is dropped.
        recompute: recompute in the backward what `msssm.recompute` does not keep, if the layer is `recomputable`.
        drop_path: probability that f is dropped for a whole row, which leaves y = x, or norm(x) in a post-norm block.
    """

    def __init__(
        self,
        layer: SequenceLayer,
        norm: Norm = "layer",
        prenorm: bool = False,
        glu: bool = True,
        dropout: float = 0.0,
        recompute: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        """Builds norm and gated linear unit. Raises ValueError for an option out of its range."""
        super().__init__(layer.d_model)
        for name, value in (("dropout", dropout), ("drop_path", drop_path)):
            if not 0 <= value < 1:
                raise InputError(f"{name} must be in [0, 1), got {value}")
        self.layer = layer
        self.norm = SequenceNorm(layer.d_model, norm)
        self.prenorm, self.dropout, self.drop_path, self.recompute = prenorm, dropout, drop_path, recompute
        self.glu = nn.Linear(layer.d_model, 2 * layer.d_model) if glu else None

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: State | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        """Maps x (B, L, D) to y (B, L, D), with `return_state` also the layer's state; lengths (B,)."""
        lengths = self.check_input(x, lengths)
        inner = self.norm(x, lengths) if self.prenorm else x
        arguments = x, inner, lengths, state, return_state
        # The norm stays outside: a batch must enter the running statistics only once.
        if self.recompute and self.layer.recomputable and recomputable(self.layer, *filter(None, [self.glu])):
            y, new_state = recomputed(self._residual, *arguments)
        else:
            y, new_state = self._residual(*arguments)
        y = y if self.prenorm else self.norm(y, lengths)
        return (y, new_state) if return_state else y

    def step_constants(self) -> Any:
        """Constants of the layer's step."""
        return self.layer.step_constants()

    def step(self, x: Tensor, state: State, constants: Any = None) -> tuple[Tensor, State]:
        """Runs one time step: x (B, D) to y (B, D) and the new state."""
        if not untouched(self, Block):
            return super().step(x, state)
        inner = self.norm(x) if self.prenorm else x
        # A layer of the user's own may take no constants.
        given = (inner, state) if constants is None else (inner, state, constants)
        inner, state = self.layer.step(*given)
        y = x + (self._mixed(inner.unsqueeze(1)).squeeze(1) if self.training else self._gated(inner))
        return y if self.prenorm else self.norm(y), state

    def _residual(
        self, x: Tensor, inner: Tensor, lengths: Tensor | None, state: State | None, return_state: bool
    ) -> tuple[Tensor, State | None]:
        """Computes x + drop(f(inner)), (B, L, D), and the layer's state if asked."""
        result = self.layer(inner, lengths, state, return_state)
        inner, new_state = result if return_state else (result, None)
        return x + self._mixed(inner), new_state

    def _mixed(self, inner: Tensor) -> Tensor:
        """Mixes the channels of the layer's output (B, L, D), and drops channels and rows in training."""
        inner = self._gated(inner)
        if self.training and self.dropout:
            inner = inner * F.dropout(torch.ones_like(inner[:, :1]), self.dropout)
        if self.training and self.drop_path:
            inner = inner * F.dropout(torch.ones_like(inner[:, :1, :1]), self.drop_path)
        return inner

    def _gated(self, inner: Tensor) -> Tensor:
        if self.glu is None:
            return inner
        # torch's own kernel takes 20 us to start, longer than all else here takes for one step.
        active = F.gelu(inner) if inner.ndim == 3 else 0.5 * inner * (1 + torch.erf(inner * 0.5**0.5))
        return F.glu(self.glu(active), dim=-1)

    def initial_state(self, batch_size: int) -> State:
        """State of the layer before the first step."""
        return self.layer.initial_state(batch_size)
