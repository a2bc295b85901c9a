"""The protocol of every sequence layer: whole sequences, sequences in chunks, or one step at a time."""

from typing import Any

from torch import Tensor, nn

from msssm.errors import InputError
from msssm.padding import true_lengths

# Nested tensors of the layer's choice, batch first; callers only pass it back.
State = Any


class SequenceLayer(nn.Module):
    """Causal map of sequences, (B, L, D) -> (B, L, D), that can stop and resume.

    `forward(x, lengths=None, state=None, return_state=False)` returns y, or (y, state). Padding past a row's length
    affects neither the outputs before it nor the state. A run in chunks, each given the previous chunk's state, equals
    the run over the whole sequence, and so does `step`. To stream, layers with batch norm must be in `eval()`.
    """

    # Whether the layer spends most of its time in scans, whose results `msssm.recompute` keeps.
    recomputable = False

    def __init__(self, d_model: int) -> None:
        """Stores the width D. Raises ValueError unless it is positive."""
        super().__init__()
        if d_model < 1:
            raise InputError(f"d_model must be at least 1, got {d_model}")
        self.d_model = d_model

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: State | None = None, return_state: bool = False
    ) -> Tensor | tuple[Tensor, State]:
        """Maps x (B, L, D) to y (B, L, D), with `return_state` also the new state; lengths (B,)."""
        raise NotImplementedError

    def check_input(self, x: Tensor, lengths: Tensor | None) -> Tensor | None:
        """Checks x (B, L, D) and lengths (B,), and returns the latter as `msssm.padding.true_lengths` does.

        Raises:
            InputError: x has another shape or is not floating point, or the lengths do not fit it.
        """
        if x.ndim != 3 or x.shape[2] != self.d_model or not x.is_floating_point():
            raise InputError(
                f"{type(self).__name__} takes floating x of shape (B, L, {self.d_model}), "
                f"got {x.dtype} of shape {tuple(x.shape)}"
            )
        return true_lengths(lengths, x)

    def initial_state(self, batch_size: int) -> State:
        """State before the first step."""
        raise NotImplementedError

    def step_constants(self) -> Any:
        """What `step` computes from the parameters alone, for many steps with the same ones; None if there is nothing.

        It must be computed again when a parameter or a module has changed.
        """
        return None

    def step(self, x: Tensor, state: State, constants: Any = None) -> tuple[Tensor, State]:
        """Runs one time step: x (B, D) to y (B, D) and the new state; the given state stays as it is."""
        y, state = self(x.unsqueeze(1), state=state, return_state=True)
        return y.squeeze(1), state
