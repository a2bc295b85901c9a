"""The Vision Transformer of timm as a backbone, to compare with."""

from functools import partial
from typing import NoReturn

from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import Block, init_weights_vit_timm
from torch import Tensor, nn

from msssm.errors import InputError
from msssm.layer import SequenceLayer, State


class ViT(SequenceLayer):
    """The Transformer of ViT (Dosovitskiy et al. 2021, section 3.1) out of timm's own blocks, with its initial weights.

        z = x + drop(attention(norm(x))),   y = z + drop(mlp(norm(z))),   in each of the blocks; then a norm

    Every position sees every other one, so it is not causal, and runs neither in chunks nor step by step: it streams
    nothing. It does not know the order of its positions: give it a position embedding. With mean pooling and a linear
    head, it is `timm.models.VisionTransformer(class_token=False, global_pool="avg", fc_norm=False)`.

    Args:
        d_model: D, width.
        n_layers: number of blocks.
        heads: of the attention; they divide D.
        mlp_ratio: width of the MLP / D.
        dropout: probability that an entry is dropped behind the attention, and behind both layers of the MLP.
        drop_path: probability that attention or MLP of the last block are dropped for a whole row in training
            (stochastic depth). Those before it have rates that grow linearly from 0 at the first.
    """

    def __init__(
        self,
        d_model: int = 192,
        n_layers: int = 12,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        """Builds the blocks. Raises ValueError for an option out of its range."""
        super().__init__(d_model)
        if n_layers < 1:
            raise InputError(f"n_layers must be at least 1, got {n_layers}")
        if heads < 1 or d_model % heads:
            raise InputError(f"heads must divide d_model = {d_model}, got heads = {heads}")
        if int(d_model * mlp_ratio) < 1:
            raise InputError(f"mlp_ratio * d_model must be at least 1, got {mlp_ratio} * {d_model}")
        for name, value in (("dropout", dropout), ("drop_path", drop_path)):
            if not 0 <= value < 1:
                raise InputError(f"{name} must be in [0, 1), got {value}")
        self.blocks = nn.ModuleList(
            Block(d_model, heads, mlp_ratio, qkv_bias=True, proj_drop=dropout, drop_path=drop_path * rate)
            for rate in (i / max(1, n_layers - 1) for i in range(n_layers))
        )
        self.norm = LayerNorm(d_model)
        self.blocks.apply(partial(init_weights_vit_timm, needs_reset=False))

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: State | None = None, return_state: bool = False
    ) -> Tensor:
        """Maps x (B, L, D) to y (B, L, D). Raises ValueError for lengths, and for any use of a state."""
        lengths = self.check_input(x, lengths)
        if lengths is not None:
            raise InputError("ViT takes rows of one length, got lengths; leave them out, or choose a msssm.Backbone")
        if state is not None or return_state:
            self._refuse()
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.norm(x)
        return y

    def initial_state(self, batch_size: int) -> NoReturn:
        """Raises ValueError: there is no state."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(
            "ViT sees the future, so it has no state to resume from: pass whole sequences, or stream a msssm.Backbone"
        )
