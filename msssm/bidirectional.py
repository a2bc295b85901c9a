"""Two sequence layers, one of them over the reversed sequence."""

from collections.abc import Callable
from typing import Literal, NoReturn

import torch
from torch import Tensor, nn

from msssm.errors import InputError
from msssm.layer import SequenceLayer, State


class Bidirectional(SequenceLayer):
    """Layer that sees past and future, as in S4's and S5's classifiers (Gu et al. 2022, section 4; not in MS-SSM).

        y = W (f(x) ; r(g(r(x)))) + b,   or their sum;   r reverses the true positions of each row

    It needs whole sequences: it runs neither in chunks nor step by step.

    Args:
        d_model: D.
        layer: makes one of the two layers, f and g, from the width.
        mix: "linear" (2 D -> D) or "sum".
    """

    def __init__(
        self, d_model: int, layer: Callable[[int], SequenceLayer], mix: Literal["linear", "sum"] = "linear"
    ) -> None:
        """Builds both layers. Raises ValueError for an unknown mix."""
        super().__init__(d_model)
        if mix not in ("linear", "sum"):
            raise InputError(f"mix must be 'linear' or 'sum', got {mix!r}")
        self.forward_layer, self.backward_layer = layer(d_model), layer(d_model)
        self.recomputable = self.forward_layer.recomputable
        self.mix = nn.Linear(2 * d_model, d_model) if mix == "linear" else None

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: State | None = None, return_state: bool = False
    ) -> Tensor:
        """Maps x (B, L, D) to y (B, L, D); lengths (B,). Raises ValueError for any use of a state."""
        lengths = self.check_input(x, lengths)
        if state is not None or return_state:
            self._refuse()
        past = self.forward_layer(x, lengths)
        future = _reverse(self.backward_layer(_reverse(x, lengths), lengths), lengths)
        if self.mix is None:
            return past + future
        mixed: Tensor = self.mix(torch.cat((past, future), dim=-1))
        return mixed

    def initial_state(self, batch_size: int) -> NoReturn:
        """Raises ValueError: this layer has no state."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(
            "Bidirectional sees the future, so it has no state to resume from: pass whole sequences, or stream its "
            "layer alone"
        )


def _reverse(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverses the true positions of each row of x (B, L, D); padding stays in place."""
    if lengths is None:
        return x.flip(1)
    place = torch.arange(x.shape[1], device=x.device)
    mirrored = lengths.unsqueeze(1) - 1 - place
    index = torch.where(mirrored >= 0, mirrored, place)
    return x.gather(1, index.unsqueeze(2).expand_as(x))
