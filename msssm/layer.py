"""The protocol of every sequence layer: a whole sequence, a sequence in chunks, or one step at a time."""

from typing import Any

import torch
from torch import Tensor, nn

from msssm.errors import InputError

# A layer's own nest of tensors with the batch in front; callers only hand it back.
State = Any


class SequenceLayer(nn.Module):
    """A causal map of sequences, (B, L, D) -> (B, L, D), that can stop and go on.

    `forward(x, lengths=None, state=None, return_state=False)` returns y, or (y, state) if asked. What lies past a
    row's length changes neither an output before it nor the state. A run in chunks, each given the state of the one
    before, equals the run over the whole, and so does `step`. Streaming layers with batch norm must be in `eval()`.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        if d_model < 1:
            raise InputError(f"d_model must be at least 1, got {d_model}")
        self.d_model = d_model

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: State | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        """x (B, L, D) -> y (B, L, D), and the state if asked; lengths (B,)."""
        raise NotImplementedError

    def check_input(self, x: Tensor, lengths: Tensor | None) -> None:
        """Raises ValueError unless x is (B, L, d_model), floating, and lengths (B,) whole numbers in 0..L."""
        if x.ndim != 3 or x.shape[2] != self.d_model or not x.is_floating_point():
            raise InputError(
                f"{type(self).__name__} takes floating x of shape (B, L, {self.d_model}), "
                f"got {x.dtype} of shape {tuple(x.shape)}"
            )
        if lengths is None:
            return
        if lengths.shape != x.shape[:1] or lengths.is_floating_point():
            raise InputError(
                f"lengths must be {len(x)} whole numbers, one per row, "
                f"got {lengths.dtype} of shape {tuple(lengths.shape)}"
            )
        # Reading values would stall a GPU, and is not possible while tracing.
        readable = lengths.device.type == "cpu" and not torch.compiler.is_compiling()
        if readable and len(lengths) and not 0 <= lengths.min() <= lengths.max() <= x.shape[1]:
            raise InputError(f"lengths must lie in 0..{x.shape[1]}, got {lengths.min().item()}..{lengths.max().item()}")

    def initial_state(self, batch_size: int) -> State:
        """The state before the first step."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One time step: x (B, D) -> y (B, D) and the new state."""
        y, state = self(x.unsqueeze(1), state=state, return_state=True)
        return y.squeeze(1), state
