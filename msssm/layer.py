"""The protocol of every sequence layer: a whole sequence, a sequence in chunks, or one step at a time."""

from typing import Any

from torch import Tensor, nn

from msssm.errors import InputError
from msssm.padding import true_lengths

# A layer's own nest of tensors with the batch in front; callers only hand it back.
State = Any


class SequenceLayer(nn.Module):
    """A causal map of sequences, (B, L, D) -> (B, L, D), that can stop and go on.

    `forward(x, lengths=None, state=None, return_state=False)` returns y, or (y, state) if asked. What lies past a
    row's length changes neither an output before it nor the state. A run in chunks, each given the state of the one
    before, equals the run over the whole, and so does `step`. Streaming layers with batch norm must be in `eval()`.
    """

    # Whether most of the layer's time is in scans, which `msssm.recompute` runs once.
    recomputable = False

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

    def check_input(self, x: Tensor, lengths: Tensor | None) -> Tensor | None:
        """The lengths as `msssm.padding.true_lengths` makes them. Raises InputError as it does, and unless x is
        (B, L, d_model) and floating."""
        if x.ndim != 3 or x.shape[2] != self.d_model or not x.is_floating_point():
            raise InputError(
                f"{type(self).__name__} takes floating x of shape (B, L, {self.d_model}), "
                f"got {x.dtype} of shape {tuple(x.shape)}"
            )
        return true_lengths(lengths, x)

    def initial_state(self, batch_size: int) -> State:
        """The state before the first step."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One time step: x (B, D) -> y (B, D) and the new state."""
        y, state = self(x.unsqueeze(1), state=state, return_state=True)
        return y.squeeze(1), state
