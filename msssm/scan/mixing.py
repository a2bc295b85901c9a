"""The weighted sum over bands."""

from torch import Tensor


def mix_bands(y: Tensor, mix: Tensor) -> Tensor:
    """Mixes the outputs of the bands, z_t = sum_s mix_t[s] y^s_t (MS-SSM, section 3.3).

    Args:
        y: outputs of the bands (B, L, M, D).
        mix: weights (B, L, M), or (B, L, M, H) with one weight per head of D / H neighbouring channels.

    Returns:
        z (B, L, D), in the dtype of `y`.

    Raises:
        ValueError: the weights do not fit the bands.
    """
    check_mix(mix, y)
    weights = as_heads(mix)
    per_head = y.unflatten(-1, (weights.shape[-1], -1))
    return (per_head * weights.unsqueeze(-1).to(y.dtype)).sum(2).flatten(-2)


def as_heads(mix: Tensor) -> Tensor:
    """Views weights (B, L, M) as (B, L, M, 1); returns (B, L, M, H) as they are."""
    return mix.unsqueeze(-1) if mix.ndim == 3 else mix


def check_mix(mix: Tensor, y: Tensor) -> None:
    """Raises ValueError unless the weights (B, L, M) or (B, L, M, H) fit bands (B, L, M, D)."""
    fits = mix.ndim in (3, 4) and mix.shape[:3] == y.shape[:3]
    if not fits or (mix.ndim == 4 and y.shape[-1] % mix.shape[3]):
        raise ValueError(
            f"mix must be (B, L, M) = {tuple(y.shape[:3])} or (B, L, M, H) with H a divisor of {y.shape[-1]}, "
            f"got {tuple(mix.shape)}"
        )
