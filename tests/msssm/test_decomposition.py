"""The learned decomposition against its definition, and against an undecimated wavelet transform."""

from typing import Any

import numpy as np
import pytest
import pywt
import torch
from torch import Tensor

from msssm.decomposition import MultiScaleDecomposition
from tests.support.tolerances import OUTPUT, allowed, assert_near

CASES: list[dict[str, Any]] = [
    {"levels": 0, "kernel_size": 3},
    {"levels": 1, "kernel_size": 1},
    {"levels": 3, "kernel_size": 4},
    {"levels": 4, "kernel_size": 2, "shared": True},
]


def decomposition(**options: Any) -> MultiScaleDecomposition:
    """In float64 from the start, so that wavelet filters are not rounded to float32 on their way."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        return MultiScaleDecomposition(3, **options)
    finally:
        torch.set_default_dtype(torch.float32)


def signal(length: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("length", [1, 2, 17, 200])
@pytest.mark.parametrize("options", CASES)
def test_bands_are_the_paper_s_sums(options: dict[str, Any], length: int) -> None:
    """a^s[t] = sum_l a^{s-1}[t - 2^{s-1} l] phi^s[l], d^s likewise with psi; zero before t = 0."""
    transform, x = decomposition(**options), signal(length)
    levels, taps = options["levels"], options["kernel_size"]
    low, high = (filters.detach().numpy() for filters in (transform.low, transform.high))
    a, bands = x.numpy(), [x.numpy()]
    for s in range(1, levels + 1):
        own = 0 if options.get("shared") else s - 1
        following, detail = np.zeros_like(a), np.zeros_like(a)
        for t in range(length):
            for lag in range(taps):
                if t - 2 ** (s - 1) * lag >= 0:
                    following[:, t] += a[:, t - 2 ** (s - 1) * lag] * low[own, lag]
                    detail[:, t] += a[:, t - 2 ** (s - 1) * lag] * high[own, lag]
        bands.append(detail)
        a = following
    assert_near(transform(x), torch.from_numpy(np.stack([*bands, a], 2)), OUTPUT[torch.float64])


@pytest.mark.parametrize(("wavelet", "kernel_size"), [("haar", 2), ("db2", 4), ("haar", 5), ("db2", 6)])
@pytest.mark.parametrize("normalised", [False, True])
def test_wavelet_filters_give_the_stationary_wavelet_transform(
    wavelet: Any, kernel_size: int, normalised: bool
) -> None:
    """Equal to `pywt.swt` on a periodic signal, at every level, up to three conventions of PyWavelets:

    its level s is centred, (2^s - 1) F / 2 steps ahead of a causal filter of F taps; its high-pass has the
    opposite sign; with norm=True each level carries a factor 1 / sqrt(2).
    """
    levels, period = 3, 32
    transform = decomposition(levels=levels, kernel_size=kernel_size, filter_init=wavelet)
    one_period = signal(period)
    bands = transform(one_period.repeat(1, 4, 1))[:, -period:].detach().numpy()
    oracle = pywt.swt(one_period.numpy(), wavelet, levels, axis=1, trim_approx=True, norm=normalised)
    support = pywt.Wavelet(wavelet).dec_len
    for s in range(1, levels + 1):
        expected = -np.roll(oracle[levels + 1 - s], (2**s - 1) * support // 2, axis=1)
        gain = 2 ** (s / 2) if normalised else 1.0
        assert_near(torch.from_numpy(bands[:, :, s]), torch.from_numpy(gain * expected), OUTPUT[torch.float64])
    expected = np.roll(oracle[0], (2**levels - 1) * support // 2, axis=1)
    gain = 2 ** (levels / 2) if normalised else 1.0
    assert_near(torch.from_numpy(bands[:, :, levels + 1]), torch.from_numpy(gain * expected), OUTPUT[torch.float64])


@pytest.mark.parametrize(("wavelet", "kernel_size"), [("haar", 2), ("db2", 4)])
def test_an_orthogonal_wavelet_splits_the_energy(wavelet: Any, kernel_size: int) -> None:
    """sum_s 2^-s |d^s|^2 + 2^-S |a^S|^2 = |x|^2 (a Parseval frame), given silence enough after the signal."""
    transform = decomposition(levels=3, kernel_size=kernel_size, filter_init=wavelet)
    x = torch.cat((signal(40), torch.zeros(2, 7 * 3, 3, dtype=torch.float64)), 1)
    energy = transform(x).detach().square().sum((0, 1, 3))
    total = (energy[1:] * torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8], dtype=torch.float64)).sum()
    assert_near(total, energy[0], OUTPUT[torch.float64])


@pytest.mark.parametrize("options", CASES)
def test_a_shifted_input_gives_shifted_bands(options: dict[str, Any]) -> None:
    transform, x = decomposition(**options), signal(20)
    for shift in (1, 2, 3, 7):
        shifted = transform(torch.nn.functional.pad(x, (0, 0, shift, 0)))
        assert torch.equal(shifted[:, :shift], torch.zeros_like(shifted[:, :shift]))
        assert torch.equal(shifted[:, shift:], transform(x))


@pytest.mark.parametrize("options", CASES)
def test_bands_do_not_see_the_future(options: dict[str, Any]) -> None:
    transform, x = decomposition(**options), signal(40)
    changed = torch.cat((x[:, :23], x[:, 23:] + 1e6), 1)
    assert torch.equal(transform(changed)[:, :23], transform(x)[:, :23])
    assert not torch.equal(transform(changed)[:, 23], transform(x)[:, 23])


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("cuts", [(1, 2, 37), (20, 20), (1,) * 40])
def test_chunks_equal_the_whole(options: dict[str, Any], cuts: tuple[int, ...]) -> None:
    transform, x = decomposition(**options), signal(40)
    state, parts = transform.initial_state(2), []
    for chunk in x.split(cuts, 1):
        bands, state = transform(chunk, state=state, return_state=True)
        parts.append(bands)
    whole, whole_state = transform(x, return_state=True)
    assert torch.equal(torch.cat(parts, 1), whole)
    assert all(torch.equal(one, other) for one, other in zip(state, whole_state, strict=True))


@pytest.mark.parametrize("options", CASES)
def test_the_history_ends_at_each_rows_length(options: dict[str, Any]) -> None:
    """Padding, NaN included, reaches neither the bands before it nor the history of the next chunk."""
    transform, x, lengths = decomposition(**options), signal(20, batch=4), [20, 13, 1, 0]
    padded, following = x.clone(), signal(6, batch=4) + 1
    for row, length in enumerate(lengths):
        padded[row, length:] = float("nan")
    bands, state = transform(padded, torch.tensor(lengths), return_state=True)
    continued = transform(following, state=state)
    for row, length in enumerate(lengths):
        alone = transform(torch.cat((x[row : row + 1, :length], following[row : row + 1]), 1))
        assert torch.equal(bands[row, :length], alone[0, :length])
        assert torch.equal(continued[row], alone[0, length:])


def test_shared_filters_are_one_pair() -> None:
    """Which every level reads."""
    one, each, x = (
        decomposition(levels=4, kernel_size=2, shared=True),
        decomposition(levels=4, kernel_size=2),
        signal(33),
    )
    assert one.low.shape == one.high.shape == (1, 2, 3)
    with torch.no_grad():
        each.low.copy_(one.low.expand_as(each.low))
        each.high.copy_(one.high.expand_as(each.high))
    assert torch.equal(one(x), each(x))


def test_without_levels_both_bands_are_the_input() -> None:
    transform, x = decomposition(levels=0), signal(5)
    assert torch.equal(transform(x), torch.stack((x, x), 2))


def test_uniform_start_has_the_published_scale() -> None:
    """U(-1, 1) / sqrt(K): bounded by K^-1/2, variance 1 / (3 K)."""
    torch.manual_seed(0)
    transform = MultiScaleDecomposition(2000, levels=3, kernel_size=4)
    for filters in (transform.low, transform.high):
        assert filters.abs().max() <= 0.5
        assert filters.var().item() == pytest.approx(1 / 12, rel=allowed(0.03, "5 standard errors"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": -1}, "levels must be at least 0, got -1"),
        ({"kernel_size": 0}, "kernel_size must be at least 1, got 0"),
        ({"filter_init": "db2", "kernel_size": 3}, "'db2' needs kernel_size >= 4, got 3"),
        ({"filter_init": "sym4"}, "'uniform', 'haar' or 'db2', got 'sym4'"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiScaleDecomposition(3, **options)
