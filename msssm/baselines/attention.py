"""Causal attention with rotary positions: the Transformer's sequence layer."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from msssm.errors import InputError
from msssm.layer import SequenceLayer
from msssm.padding import mask_padding, position_mask
from msssm.transforms import transformed


class AttentionState(NamedTuple):
    """Keys and values so far, (B, H, T, D / H), and which of the T are true positions, (B, T)."""

    keys: Tensor
    values: Tensor
    valid: Tensor


class CausalAttention(SequenceLayer):
    """Multi-head softmax attention over the past (Vaswani et al. 2017) with rotary positions (Su et al. 2021).

        y_t = W_o sum_{j <= t} softmax_j(<R_t q_t, R_j k_j> / sqrt(D / H)) v_j

    Its state grows with the sequence.

    Args:
        d_model: D.
        heads: H; D / H must be even.
    """

    def __init__(self, d_model: int, heads: int = 4) -> None:
        """Builds the projections. Raises ValueError unless 2 H divides D."""
        super().__init__(d_model)
        if heads < 1 or d_model % (2 * heads):
            raise InputError(f"2 * heads must divide d_model = {d_model}, got heads = {heads}")
        self.heads = heads
        self.input = nn.Linear(d_model, 3 * d_model)
        self.output = nn.Linear(d_model, d_model)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        state: AttentionState | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, AttentionState]:
        """Maps x (B, L, D) to y (B, L, D), with `return_state` also the new state; lengths (B,)."""
        lengths = self.check_input(x, lengths)
        batch, length, _ = x.shape
        q, k, v = self.input(mask_padding(x, lengths)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if state is None:
            state = self.initial_state(batch)
        elif (shape := (batch, self.heads, state.valid.shape[-1], q.shape[-1])) != state.keys.shape:
            raise InputError(f"the state must be keys of shape {shape}, got {tuple(state.keys.shape)}")
        new = x.new_ones(batch, length, dtype=torch.bool) if lengths is None else position_mask(lengths, length)
        valid = torch.cat((state.valid, new), dim=1)
        # Positions count true steps only, so that a padded chunk leaves no gap before the next.
        positions = state.valid.sum(1, keepdim=True) + torch.arange(length, device=x.device)
        q, k = _rotate(q, positions), _rotate(k, positions)
        keys, values = (
            torch.cat((state.keys.to(k.dtype), k), dim=2),
            torch.cat((state.values.to(v.dtype), v), dim=2),
        )
        if valid.shape[1] == length:
            # Right-padded from the start: the future mask alone hides the padding from every true position.
            attended = _attend(q, keys, values, is_causal=True)
        else:
            past = valid.shape[1] - length
            order = torch.arange(valid.shape[1], device=x.device)
            causal = order <= past + torch.arange(length, device=x.device).unsqueeze(1)
            itself = order == past + torch.arange(length, device=x.device).unsqueeze(1)  # so that padding stays finite
            mask = (causal & valid.unsqueeze(1)) | itself
            attended = _attend(q, keys, values, mask.unsqueeze(1))
        y = self.output(attended.transpose(1, 2).flatten(2))
        return (y, AttentionState(keys, values, valid)) if return_state else y

    def initial_state(self, batch_size: int) -> AttentionState:
        """State without keys and values."""
        # A quantised layer has no floating-point parameter.
        parameter = next((x for x in self.parameters() if x.is_floating_point()), torch.empty(0))
        empty = parameter.new_zeros(batch_size, self.heads, 0, self.d_model // self.heads)
        return AttentionState(empty, empty, parameter.new_zeros(batch_size, 0, dtype=torch.bool))


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Softmax attention; under a transform, by the only kernel that supports all of them."""
    if not transformed():
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal)


def _rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of x (B, H, L, d) at positions (B, L)."""
    half = x.shape[-1] // 2
    frequencies = 10_000 ** -(torch.arange(half, device=x.device) / half)
    angles = (positions.unsqueeze(-1) * frequencies).unsqueeze(1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
