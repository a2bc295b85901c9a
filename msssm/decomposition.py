"""The multi-scale decomposition: a learned, causal, undecimated wavelet transform of each channel."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from msssm.errors import InputError
from msssm.padding import last_positions, mask_padding, true_lengths
from msssm.scan.decomposition import cpu as native
from msssm.scan.decomposition.torch import bands_and_histories, dilated_convolution, weighted_sum
from msssm.scan.dispatch import Backend, choose
from msssm.scan.operands import inner_contiguous

FilterInit = Literal["uniform", "haar", "db2"]

# Orthonormal low-pass filters, tap 0 on the newest sample (Daubechies 1988).
_SQRT3 = math.sqrt(3)
_WAVELETS = {
    "haar": [1 / math.sqrt(2), 1 / math.sqrt(2)],
    "db2": [c / (4 * math.sqrt(2)) for c in (1 - _SQRT3, 3 - _SQRT3, 3 + _SQRT3, 1 + _SQRT3)],
}


class MultiScaleDecomposition(nn.Module):
    """Splits a sequence into S + 2 bands of the same length, finest first (MS-SSM, section 3.1; Shi et al. 2023).

        a^0 = x,   a^s[t] = sum_l a^{s-1}[t - 2^{s-1} l] phi^s[l],   d^s[t] = sum_l a^{s-1}[t - 2^{s-1} l] psi^s[l]

    Bands: x, d^1 .. d^S, a^S. No bias, no activation, no downsampling; values before t = 0 are zero.

    Args:
        d_model: D, channels.
        levels: S, at least 0.
        kernel_size: K, taps of each filter.
        filter_init: start of the filters: "uniform" (U(-1, 1) / sqrt(K), as MultiresNet) or an orthogonal wavelet,
            "haar" (K >= 2) or "db2" (K >= 4), older taps zero.
        shared: one pair of filters for all levels, as MultiresNet.
        backend: "cpu" (native, float32), "torch", or "auto", as in `msssm.scan.multiscale_scan`.
    """

    def __init__(
        self,
        d_model: int,
        levels: int = 3,
        kernel_size: int = 4,
        filter_init: FilterInit = "uniform",
        shared: bool = False,
        backend: Backend = "auto",
    ) -> None:
        """Draws the filters. Raises ValueError for levels < 0, or a kernel too short for its filters."""
        super().__init__()
        if levels < 0:
            raise InputError(f"levels must be at least 0, got {levels}")
        if kernel_size < 1:
            raise InputError(f"kernel_size must be at least 1, got {kernel_size}")
        self.d_model, self.levels, self.kernel_size, self.backend = d_model, levels, kernel_size, backend
        start = _initial_filters(1 if shared else levels, kernel_size, d_model, filter_init)
        self.low, self.high = nn.Parameter(start[0]), nn.Parameter(start[1])

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        return_state: bool = False,
        weights: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """Maps x (B, L, D) to bands (B, L, S + 2, D), with `return_state` also each level's history; lengths (B,).

        With weights (S + 2, D) to the sum of the bands times them, (B, L, D): natively without any band in memory.
        Raises ValueError for weights of another shape.
        """
        lengths = true_lengths(lengths, x)
        if weights is not None and weights.shape != (self.levels + 2, self.d_model):
            raise InputError(
                f"the weights must be (S + 2, D) = {(self.levels + 2, self.d_model)}, got {tuple(weights.shape)}"
            )
        low, high = self.filters()
        past = self.joined(state, x)
        # In half precision the bands stay in it, as those of torch.
        if x.dtype == low.dtype == torch.float32 and choose(self.backend, x.device, x.dtype) == "cpu":
            if weights is None:
                y, history = native.decomposition(inner_contiguous(x), low, high, past, lengths, return_state)
            else:
                y, history = native.weighted_decomposition(
                    inner_contiguous(x), low, high, weights, past, lengths, return_state
                )
            return (y, self.separated(history)) if return_state else y
        y, histories = bands_and_histories(
            x, low, high, self.initial_state(len(x)) if state is None else state, lengths
        )
        y = y if weights is None else weighted_sum(y, weights)
        return (y, histories) if return_state else y

    def filters(self) -> tuple[Tensor, Tensor]:
        """Low-pass and high-pass filters of all levels, each (S, K, D)."""
        low, high = (filters.expand(self.levels, -1, -1).contiguous() for filters in (self.low, self.high))
        return low, high

    def step_constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a step needs of the filters.

        A step is linear in the positions under the taps. Its results are the bands and each level's input.

        Returns:
            Rows of the joined histories and x that are under a tap, their weights in each result (rows, M + S, D), and
            rows of the joined histories, x and results that are the next histories.
        """
        levels, taps = range(self.levels), self.kernel_size - 1
        sizes = [taps * 2**level for level in levels]
        starts = [sum(sizes[:level]) for level in levels]
        length = sum(sizes)
        under = [starts[level] + 2**level * lag for level in levels for lag in range(taps)] + [length]
        units = self.low.new_zeros(len(under), length + 1, self.d_model)
        units[range(len(under)), under] = 1
        bands, histories = bands_and_histories(
            units[:, length:], *self.filters(), units[:, :length].split(sizes, dim=1), None
        )
        inputs = [history[:, -1:] for history in histories if history.shape[1]]
        weights = torch.cat((bands.squeeze(1), *inputs), 1)
        after = [
            row
            for level in levels
            for row in (*range(starts[level] + 1, starts[level] + sizes[level]), length + 1 + self.levels + 2 + level)
            if taps
        ]
        device = self.low.device
        return torch.tensor(under, device=device), weights, torch.tensor(after, dtype=torch.long, device=device)

    def step(
        self, x: Tensor, state: tuple[Tensor, ...], constants: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Maps x (B, D) to bands (B, M, D), and the new histories."""
        under, weights, after = constants
        rows = torch.cat((*(history.to(x.dtype) for history in state), x.unsqueeze(1)), 1)
        results = (rows.index_select(1, under).unsqueeze(2) * weights).sum(1)
        past = torch.cat((rows, results), 1).index_select(1, after)
        return results[:, : self.levels + 2], self.separated(past)

    def joined(self, state: tuple[Tensor, ...] | None, x: Tensor) -> Tensor | None:
        """Joins the levels' histories to one, (B, (K - 1) (2^S - 1), D), for an input x. Raises as `check_history`."""
        if state is None:
            return None
        check_history(state, self.initial_state(len(x)), x)
        return torch.cat([x[:, :0], *(history.to(x.dtype) for history in state)], dim=1)

    def separated(self, history: Tensor) -> tuple[Tensor, ...]:
        """Separates what `joined` joined."""
        return history.split([(self.kernel_size - 1) * 2**level for level in range(self.levels)], dim=1)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Zeros: for each level s, the last (K - 1) 2^(s-1) values of a^{s-1}, (B, (K - 1) 2^(s-1), D)."""
        return tuple(
            self.low.new_zeros(batch_size, (self.kernel_size - 1) * 2**level, self.d_model)
            for level in range(self.levels)
        )


def check_history(state: tuple[Tensor, ...], silence: tuple[Tensor, ...], x: Tensor) -> None:
    """Raises InputError unless the histories are floating point, on the device of x, and of the shapes of `silence`."""
    if [history.shape for history in state] != [history.shape for history in silence]:
        raise InputError(
            f"the state must be histories of shapes {[tuple(history.shape) for history in silence]}, "
            f"got {[tuple(history.shape) for history in state]}"
        )
    if any(history.device != x.device or not history.is_floating_point() for history in state):
        got = [f"{history.dtype} on {history.device}" for history in state]
        raise InputError(f"the state must be floating and on {x.device}, where x is, got {got}")


class ConvolutionBands(nn.Module):
    """S + 2 bands without scales: the input, and S + 1 short causal depthwise convolutions of it, K taps each.

    MS-SSM without its cascade (MS-SSM, table 5, "plain Conv1d"; it is our reading that they are depthwise, and as many
    as the bands). Same protocol as `MultiScaleDecomposition`.

    Args:
        d_model: D, channels.
        levels: S.
        kernel_size: K.
    """

    def __init__(self, d_model: int, levels: int, kernel_size: int) -> None:
        """Draws the filters. Raises ValueError for an option out of its range."""
        super().__init__()
        self.levels = levels
        self.taps = nn.Parameter(_initial_filters(levels + 1, kernel_size, d_model, "uniform")[0])

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """Maps x (B, L, D) to bands (B, L, S + 2, D), with `return_state` also the last K - 1 inputs; lengths (B,)."""
        lengths = true_lengths(lengths, x)
        if state is not None:
            check_history(state, self.initial_state(len(x)), x)
        (history,) = self.initial_state(len(x)) if state is None else state
        x = mask_padding(x, lengths)
        extended = torch.cat((history.to(x.dtype), x), dim=1)
        bands = torch.stack((x, *(dilated_convolution(extended, taps, 1) for taps in self.taps)), dim=2)
        bands = mask_padding(bands, lengths)
        return (bands, (last_positions(extended, lengths, history.shape[1]),)) if return_state else bands

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Zeros, (B, K - 1, D)."""
        _, kernel_size, channels = self.taps.shape
        return (self.taps.new_zeros(batch_size, kernel_size - 1, channels),)


def _initial_filters(levels: int, kernel_size: int, d_model: int, filter_init: FilterInit) -> tuple[Tensor, Tensor]:
    """Initial low-pass and high-pass taps, each (levels, K, D)."""
    shape = (levels, kernel_size, d_model)
    if filter_init == "uniform":
        scale = kernel_size**-0.5
        return (torch.rand(shape) * 2 - 1) * scale, (torch.rand(shape) * 2 - 1) * scale
    if filter_init not in _WAVELETS:
        raise InputError(f"filter_init must be 'uniform', 'haar' or 'db2', got {filter_init!r}")
    low = torch.tensor(_WAVELETS[filter_init])
    if kernel_size < len(low):
        raise InputError(f"filter_init={filter_init!r} needs kernel_size >= {len(low)}, got {kernel_size}")
    high = low.flip(0) * torch.tensor([(-1.0) ** tap for tap in range(len(low))])
    padded = (torch.nn.functional.pad(taps, (0, kernel_size - len(low))) for taps in (low, high))
    first, second = (taps.view(1, -1, 1).expand(shape).clone() for taps in padded)
    return first, second
