"""Images as sequences of embedded patches or single pixels."""

from typing import Literal

import torch
from torch import Tensor, nn

from msssm.errors import InputError

ScanOrder = Literal["raster", "snake"]


class PatchEmbedding(nn.Module):
    """Linear embedding of flattened patches, one token each (Dosovitskiy et al. 2021, section 3.1).

    Patches of one pixel are the encoder of sequential CIFAR, patches of 16 x 16 that of ImageNet (MS-SSM, appendix).
    In raster order without a position embedding, pixels may arrive in chunks of any size, down to single ones.

    Args:
        image_size: H = W in pixels. Without a position embedding, images (B, C, H, W) may have another size.
        patch_size: P, side of a patch in pixels.
        in_channels: C.
        d_model: D.
        scan_order: rows of patches from left to right ("raster"), or every second one backwards ("snake").
        position_embedding: add a learned vector to each of the H W / P^2 positions.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int = 16,
        in_channels: int = 3,
        d_model: int = 256,
        scan_order: ScanOrder = "raster",
        position_embedding: bool = False,
    ) -> None:
        """Builds the projection. Raises ValueError for an option out of its range."""
        super().__init__()
        self.image_size, self.patch_size, self.in_channels = image_size, patch_size, in_channels
        for name, value in (("image_size", image_size), ("patch_size", patch_size), ("in_channels", in_channels)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if scan_order not in ("raster", "snake"):
            raise InputError(f"scan_order must be 'raster' or 'snake', got {scan_order!r}")
        self.scan_order = scan_order
        self.check_divides(image_size, image_size)
        self.projection = nn.Linear(patch_size**2 * in_channels, d_model)
        self.position: nn.Parameter | None = None
        if position_embedding:
            self.position = nn.Parameter(0.02 * torch.randn((image_size // patch_size) ** 2, d_model))

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, C, H, W), or pixels (B, H W, C) in raster order, to tokens (B, H W / P^2, D).

        Raises:
            ValueError: the shape is another, or does not divide into patches.
        """
        tokens: Tensor = self.projection(self._patches(x))
        if self.position is None:
            return tokens
        other_grid = x.ndim == 4 and x.shape[2] != self.image_size
        if other_grid or tokens.shape[1] != len(self.position):
            raise InputError(
                f"the position embedding is of {len(self.position)} patches (image_size={self.image_size}), "
                f"got {tokens.shape[1]} of an input of shape {tuple(x.shape)}; resize the images, or train without "
                "position_embedding"
            )
        return tokens + self.position

    def _patches(self, x: Tensor) -> Tensor:
        """Cuts images into patches (B, L, P P C): pixels in raster order, channels innermost."""
        patch = self.patch_size
        if x.ndim == 3 and x.shape[2] == self.in_channels:
            if patch == 1 and self.scan_order == "raster":
                return x
            side = self.image_size
            if x.shape[1] != side**2:
                raise InputError(f"an image of image_size={side} has {side**2} pixels, got {x.shape[1]}")
            grid = x.unflatten(1, (side, side))
        elif x.ndim == 4 and x.shape[1] == self.in_channels:
            self.check_divides(*x.shape[2:])
            grid = x.permute(0, 2, 3, 1)
        else:
            channels = self.in_channels
            raise InputError(
                f"expected images (B, {channels}, H, W) or pixels (B, H W, {channels}), got shape {tuple(x.shape)}; "
                "set in_channels to the data's"
            )
        cut = grid.unflatten(2, (-1, patch)).unflatten(1, (-1, patch))  # (B, H / P, P, W / P, P, C)
        return self.scan(cut.transpose(2, 3).flatten(3))

    def scan(self, grid: Tensor) -> Tensor:
        """Reads a grid of patches (B, H / P, W / P, D) into tokens (B, L, D), in the scan order."""
        return self._ordered(grid).flatten(1, 2)

    def unscan(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Puts tokens (B, L, D) of images of height x width pixels back into their grid (B, H / P, W / P, D)."""
        return self._ordered(tokens.unflatten(1, (height // self.patch_size, width // self.patch_size)))

    def _ordered(self, grid: Tensor) -> Tensor:
        """Turns every second row around in a snake, which is its own inverse."""
        if self.scan_order == "raster":
            return grid
        backwards = torch.arange(grid.shape[1], device=grid.device) % 2 == 1
        return torch.where(backwards.view(-1, 1, 1), grid.flip(2), grid)

    def check_divides(self, height: int, width: int) -> None:
        """Raises ValueError for an image of height x width pixels that does not divide into patches."""
        patch = self.patch_size
        if height % patch or width % patch:
            raise InputError(
                f"an image of {height} x {width} pixels does not divide into patches of {patch} x {patch}; "
                f"resize it to a multiple of {patch}, or choose another patch_size"
            )
