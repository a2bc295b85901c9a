"""The protocol of every sequence layer: a whole sequence, a sequence in chunks, or one step at a time."""

from typing import Any

from torch import Tensor, nn

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
            raise ValueError(f"d_model must be at least 1, got {d_model}")
        self.d_model = d_model

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: State | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        """x (B, L, D) -> y (B, L, D), and the state if asked; lengths (B,)."""
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> State:
        """The state before the first step."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One time step: x (B, D) -> y (B, D) and the new state."""
        y, state = self(x.unsqueeze(1), state=state, return_state=True)
        return y.squeeze(1), state
