"""The network that every task shares: a stack of residual blocks around any sequence layer."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from msssm.block import Block
from msssm.errors import InputError
from msssm.layer import SequenceLayer, State
from msssm.norm import Norm, SequenceNorm
from msssm.paths import local_path
from msssm.pretrained import layer_config, layer_factory, pretrained_folder, read_pretrained, write_pretrained
from msssm.untouched import untouched


class Backbone(SequenceLayer):
    """Stack of `n_layers` residual blocks; itself a sequence layer, so it runs in chunks and step by step.

    Args:
        layer: makes the sequence layer of one block from its width, for example
            `functools.partial(MultiScaleSSM, levels=3)`.
        d_model: D, width.
        n_layers: number of blocks.
        norm: "batch" or "layer", see `SequenceNorm`.
        prenorm: normalise before each layer (and once at the end) instead of after each residual sum.
        glu: GELU and a gated linear unit after each layer, see `Block`.
        dropout: probability that a whole channel of a row is dropped, in every block.
        recompute: keep each block's input and the results of its scans for the backward, and recompute the rest (see
            `msssm.recompute`), so that memory hardly grows with the number of levels. Layers that are not
            `recomputable`, and blocks with forward hooks inside, keep everything.
        drop_path: probability that the last block is dropped for a whole row in training (stochastic depth, see
            `Block`). Those before it have rates that grow linearly from 0 at the first, as in timm.
    """

    def __init__(
        self,
        layer: Callable[[int], SequenceLayer],
        d_model: int = 128,
        n_layers: int = 6,
        norm: Norm = "layer",
        prenorm: bool = False,
        glu: bool = True,
        dropout: float = 0.0,
        recompute: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        """Builds the blocks. Raises ValueError for an option out of its range."""
        super().__init__(d_model)
        self._config = {
            "layer": layer_config(layer),
            "d_model": d_model,
            "n_layers": n_layers,
            "norm": norm,
            "prenorm": prenorm,
            "glu": glu,
            "dropout": dropout,
            "recompute": recompute,
            "drop_path": drop_path,
        }
        if n_layers < 1:
            raise InputError(f"n_layers must be at least 1, got {n_layers}")
        if not 0 <= drop_path < 1:  # a single block has rate 0 and would not notice
            raise InputError(f"drop_path must be in [0, 1), got {drop_path}")
        rates = [drop_path * (i / max(1, n_layers - 1)) for i in range(n_layers)]
        self.blocks = nn.ModuleList(
            Block(layer(d_model), norm, prenorm, glu, dropout, recompute, rate) for rate in rates
        )
        self.norm = SequenceNorm(d_model, norm) if prenorm else None

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        state: tuple[State, ...] | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, tuple[State, ...]]:
        """Maps x (B, L, D) to y (B, L, D), with `return_state` also the states of all blocks; lengths (B,)."""
        lengths = self.check_input(x, lengths)
        states = (None,) * len(self.blocks) if state is None else state
        new_states = []
        for block, block_state in zip(self.blocks, states, strict=True):
            result = block(x, lengths, block_state, return_state)
            x, new_state = result if return_state else (result, None)
            new_states.append(new_state)
        if self.norm is not None:
            x = self.norm(x, lengths)
        return (x, tuple(new_states)) if return_state else x

    def step_constants(self) -> tuple[Any, ...]:
        """Constants of the blocks' steps."""
        return tuple(block.step_constants() for block in cast("Iterable[Block]", self.blocks))

    def step(
        self, x: Tensor, state: tuple[State, ...], constants: tuple[Any, ...] | None = None
    ) -> tuple[Tensor, tuple[State, ...]]:
        """Runs one time step: x (B, D) to y (B, D) and the new states."""
        if not untouched(self, Backbone):
            return super().step(x, state)
        constants = (None,) * len(self.blocks) if constants is None else constants
        new_states = []
        for block, block_state, own in zip(cast("Iterable[Block]", self.blocks), state, constants, strict=True):
            x, new_state = block.step(x, block_state, own)
            new_states.append(new_state)
        if self.norm is not None:
            x = self.norm(x)
        return x, tuple(new_states)

    def initial_state(self, batch_size: int) -> tuple[State, ...]:
        """States of all blocks before the first step."""
        blocks = cast("Iterable[Block]", self.blocks)
        return tuple(block.initial_state(batch_size) for block in blocks)

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of the constructor; "layer" as class path and options, or None if those are unknown."""
        return dict(self._config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model.safetensors and config.json, see `msssm.pretrained.write_pretrained`."""
        write_pretrained(local_path(folder), self._config, self.state_dict())

    @classmethod
    def from_pretrained(cls, model: str | Path) -> "Backbone":
        """Loads a folder that `save_pretrained` or `msssm export` wrote, or a shipped model by its name, in `eval()`.

        Its tensors have the types of the file, whatever torch's default type.

        Raises:
            FileNotFoundError: there is no such model, or a file is missing.
            ValueError: a file is damaged or of another format, or its tensors do not fit its config.
        """
        folder = pretrained_folder(model)
        config, weights, prefix = read_pretrained(folder)
        own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        try:
            backbone = cls(**{**config, "layer": layer_factory(config["layer"])})
            backbone.load_state_dict(own, assign=True)
        except (RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{folder}: the weights do not fit the config ({reason}); export it again") from error
        return backbone.eval()
