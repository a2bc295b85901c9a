"""The convolution form of a time-invariant model equals its recurrence."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from msssm.scan import lti_scan
from tests.tolerances import OUTPUT, assert_near

BATCH, BANDS, CHANNELS, STATES = 3, 2, 3, 4


def arguments(length: int, complex_: bool, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.complex128 if complex_ else torch.float64
    shape = (BANDS, CHANNELS, STATES)
    A = -0.1 - 2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    if complex_:
        A = torch.complex(A, 5 * torch.randn(shape, generator=generator, dtype=torch.float64))
    return {
        "u": torch.randn(BATCH, length, BANDS, CHANNELS, generator=generator, dtype=torch.float64),
        "delta": 0.01 + 0.3 * torch.rand(BANDS, CHANNELS, generator=generator, dtype=torch.float64),
        "A": A,
        "C": torch.randn(shape, generator=generator, dtype=dtype),
        "initial_state": torch.randn(BATCH, *shape, generator=generator, dtype=dtype),
    }


def recurrence(given: dict[str, Tensor], lengths: list[int], discretization: str) -> tuple[Tensor, Tensor]:
    """h = exp(delta A) h + b u, y = Re sum_n C h (twice for conjugate pairs), step by step."""
    u, delta, A, C, h = (x.numpy() for x in given.values())
    h, y = h.copy(), np.zeros(u.shape)
    decay = np.exp(delta[..., None] * A)
    gain = (decay - 1) / A if discretization == "zoh" else np.broadcast_to(delta[..., None], A.shape)
    for b in range(len(u)):
        for t in range(u.shape[1]):
            following = decay * h[b] + gain * u[b, t, :, :, None]
            y[b, t] = (C * following).sum(-1).real * (2 if np.iscomplexobj(A) else 1)
            h[b] = following
            if t + 1 == lengths[b]:
                last = following.copy()
        if lengths[b] == 0:
            last = given["initial_state"][b].numpy()
        h[b] = last
    return torch.from_numpy(y), torch.from_numpy(h)


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("discretization", ["zoh", "euler"])
@pytest.mark.parametrize("length", [1, 2, 3, 17, 63, 200])
def test_convolution_equals_recurrence(length: int, discretization: Any, complex_: bool) -> None:
    given = arguments(length, complex_)
    y, h = lti_scan(**given, return_state=True, discretization=discretization)
    expected_y, expected_h = recurrence(given, [length] * BATCH, discretization)
    assert_near(y, expected_y, OUTPUT[torch.float64])
    assert_near(h, expected_h, OUTPUT[torch.float64])


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("lengths", [[17, 5, 1], [17, 0, 16], [2, 2, 2]])
def test_the_state_is_that_after_each_rows_own_length(lengths: list[int], complex_: bool) -> None:
    given = arguments(17, complex_)
    y, h = lti_scan(**given, lengths=torch.tensor(lengths), return_state=True)
    expected_y, expected_h = recurrence(given, lengths, "zoh")
    for row, length in enumerate(lengths):
        assert_near(y[row, :length], expected_y[row, :length], OUTPUT[torch.float64])
    assert_near(h, expected_h, OUTPUT[torch.float64])


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_no_initial_state_is_zero(complex_: bool) -> None:
    given = arguments(17, complex_)
    start = given.pop("initial_state")
    expected = lti_scan(**given, initial_state=torch.zeros_like(start), return_state=True)
    for actual, zero in zip(lti_scan(**given, return_state=True), expected, strict=True):
        assert_near(actual, zero, OUTPUT[torch.float64])


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("delta", [1e-6, 1e-3, 0.1, 1.0])
def test_float32_stays_close_to_float64(delta: float, complex_: bool) -> None:
    """Besides the usual roundings, the phase delta Im(A) t is known to eps times its own size."""
    length = 100
    given = arguments(length, complex_)
    narrow_dtype = {torch.float64: torch.float32, torch.complex128: torch.complex64}
    given["delta"] = given["delta"] / given["delta"].max() * delta
    given["initial_state"] = torch.zeros_like(given["initial_state"])
    narrow = {name: x.to(narrow_dtype[x.dtype]) for name, x in given.items()}
    wide = {name: x.to(given[name].dtype) for name, x in narrow.items()}
    y, h = lti_scan(**narrow, return_state=True)
    assert (y.dtype, h.dtype) == (torch.float32, narrow["A"].dtype)
    phase = delta * given["A"].abs().max().item() * length
    tolerance = OUTPUT[torch.float32] + phase * torch.finfo(torch.float32).eps
    for actual, expected in zip((y, h), recurrence(wide, [length] * BATCH, "zoh"), strict=True):
        assert_near(actual, expected, tolerance)


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("discretization", ["zoh", "euler"])
def test_gradients_equal_finite_differences(discretization: Any, complex_: bool) -> None:
    given = arguments(3, complex_)
    given |= {name: given[name][..., :2] for name in ("A", "C", "initial_state")}
    options: dict[str, Any] = {"lengths": torch.tensor([3, 0, 2]), "discretization": discretization}

    def scan(*values: Tensor) -> Any:
        return lti_scan(**dict(zip(given, values, strict=True)), return_state=True, **options)

    assert torch.autograd.gradcheck(scan, [x.contiguous().requires_grad_() for x in given.values()])


def test_an_unknown_discretization_is_named() -> None:
    with pytest.raises(ValueError, match="'zoh' or 'euler', got 'bilinear'"):
        lti_scan(**arguments(2, False), discretization="bilinear")  # type: ignore[arg-type]
