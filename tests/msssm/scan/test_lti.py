"""Time-invariant models: the recurrence, native or not, and the convolution are the same map."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from msssm.scan import lti_scan
from msssm.scan.csrc.library import library
from tests.support.tolerances import KERNEL_GRADIENT, METRIC, OUTPUT, STEP, assert_near

needs_native = pytest.mark.skipif(library() is None, reason="the native kernels are not built")

BATCH, BANDS, CHANNELS, STATES = 3, 2, 3, 4


def arguments(length: int, complex_: bool, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.complex128 if complex_ else torch.float64
    shape = (BANDS, CHANNELS, STATES)
    A = -0.1 - 2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    if complex_:
        A = torch.complex(A, 5 * torch.randn(shape, generator=generator, dtype=torch.float64))
    return {
        "bands": torch.randn(BATCH, length, BANDS, CHANNELS, generator=generator, dtype=torch.float64),
        "delta": 0.01 + 0.3 * torch.rand(BANDS, CHANNELS, generator=generator, dtype=torch.float64),
        "A": A,
        "C": torch.randn(shape, generator=generator, dtype=dtype),
        "mix": torch.randn(BATCH, length, BANDS, CHANNELS, generator=generator, dtype=torch.float64),
        "D": torch.randn(BANDS, CHANNELS, generator=generator, dtype=torch.float64),
        "initial_state": torch.randn(BATCH, *shape, generator=generator, dtype=dtype),
    }


def recurrence(given: dict[str, Tensor], lengths: list[int], discretization: str) -> tuple[Tensor, Tensor]:
    """h = exp(delta A) h + b u, y = sum_m mix (Re sum_n C h + D u), Re twice for conjugate pairs, step by step."""
    u, delta, A, C, mix, D, h = (x.numpy() for x in given.values())
    h, y = h.copy(), np.zeros((*u.shape[:2], u.shape[3]))
    decay = np.exp(delta[..., None] * A)
    gain = (decay - 1) / A if discretization == "zoh" else np.broadcast_to(delta[..., None], A.shape)
    for b in range(len(u)):
        for t in range(lengths[b]):
            h[b] = decay * h[b] + gain * u[b, t, :, :, None]
            out = (C * h[b]).sum(-1).real * (2 if np.iscomplexobj(A) else 1) + D * u[b, t]
            y[b, t] = (mix[b, t] * out).sum(0)
    return torch.from_numpy(y), torch.from_numpy(h)


def gradients(given: dict[str, Tensor], lengths: list[int], backend: Any) -> list[Tensor]:
    """Of a fixed linear loss of the outputs and the last state."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in given.items()}
    y, h = lti_scan(**leaves, lengths=torch.tensor(lengths), return_state=True, backend=backend)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.complex128) for x in (y, h)]
    narrow = [w.to(x.dtype) if x.is_complex() else w.real.to(x.dtype) for w, x in zip(weights, (y, h), strict=True)]
    return list(torch.autograd.grad((y, h), list(leaves.values()), narrow))


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("discretization", ["zoh", "euler"])
@pytest.mark.parametrize("length", [1, 2, 3, 17, 63, 200])
def test_equals_the_recurrence_written_out(length: int, discretization: Any, complex_: bool, backend: Any) -> None:
    given = arguments(length, complex_)
    y, h = lti_scan(**given, return_state=True, discretization=discretization, backend=backend)
    expected_y, expected_h = recurrence(given, [length] * BATCH, discretization)
    assert_near(y, expected_y, OUTPUT[torch.float64])
    assert_near(h, expected_h, OUTPUT[torch.float64])


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("lengths", [[17, 5, 1], [17, 0, 16], [2, 2, 2]])
def test_what_lies_past_a_length_is_not_read(lengths: list[int], complex_: bool, backend: Any) -> None:
    given = arguments(17, complex_)
    expected_y, expected_h = recurrence(given, lengths, "zoh")
    for row, length in enumerate(lengths):
        given["bands"][row, length:] = given["mix"][row, length:] = float("nan")
    y, h = lti_scan(**given, lengths=torch.tensor(lengths), return_state=True, backend=backend)
    assert_near(y, expected_y, OUTPUT[torch.float64])
    assert_near(h, expected_h, OUTPUT[torch.float64])


def narrowed(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.to(torch.complex64 if x.is_complex() else torch.float32) for name, x in given.items()}


@needs_native
@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("lengths", [[1] * 3, [2, 2, 0], [17, 3, 9], [200, 63, 129]])
def test_native_recurrence_equals_the_reference(lengths: list[int], complex_: bool) -> None:
    """Outputs, states and every gradient, in float32 against float64 from the same rounded numbers."""
    narrow = narrowed(arguments(max(lengths), complex_))
    wide = {name: x.to(torch.complex128 if x.is_complex() else torch.float64) for name, x in narrow.items()}
    options: dict[str, Any] = {"lengths": torch.tensor(lengths), "return_state": True}
    results = lti_scan(**narrow, **options, backend="cpu")
    for actual, expected in zip(results, lti_scan(**wide, **options, backend="reference"), strict=True):
        assert_near(actual, expected, STEP[torch.float32])
    pairs = zip(gradients(narrow, lengths, "cpu"), gradients(wide, lengths, "reference"), strict=True)
    for actual, expected in pairs:
        assert_near(actual, expected, KERNEL_GRADIENT[torch.float32])


@needs_native
@pytest.mark.parametrize("states", [1, 3, 4, 25])
@pytest.mark.parametrize("channels", [1, 16, 40])
def test_native_recurrence_takes_any_sizes(channels: int, states: int) -> None:
    generator = torch.Generator().manual_seed(states)
    A = -torch.rand(2, channels, states, generator=generator) - 0.1
    C = torch.randn(2, channels, states, generator=generator)
    u, mix = torch.randn(9, 70, 2, channels, generator=generator), torch.randn(9, 70, 2, generator=generator)
    delta = torch.rand(2, channels, generator=generator)
    y = lti_scan(u, delta, A, C, mix, backend="cpu")
    expected = lti_scan(u.double(), delta.double(), A.double(), C.double(), mix.double(), backend="reference")
    assert isinstance(expected, Tensor)
    assert_near(y, expected, METRIC)


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
def test_no_initial_state_is_zero(complex_: bool) -> None:
    given = arguments(17, complex_)
    start = given.pop("initial_state")
    expected = lti_scan(**given, initial_state=torch.zeros_like(start), return_state=True)
    for actual, zero in zip(lti_scan(**given, return_state=True), expected, strict=True):
        assert_near(actual, zero, OUTPUT[torch.float64])


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("delta", [1e-6, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("backend", ["reference", "torch", pytest.param("cpu", marks=needs_native)])
def test_float32_stays_close_to_float64(delta: float, complex_: bool, backend: Any) -> None:
    """Besides the usual roundings, the phase delta Im(A) t is known to eps times its own size."""
    length = 100
    given = arguments(length, complex_)
    given["delta"] = given["delta"] / given["delta"].max() * delta
    given["initial_state"] = torch.zeros_like(given["initial_state"])
    narrow = narrowed(given)
    wide = {name: x.to(given[name].dtype) for name, x in narrow.items()}
    y, h = lti_scan(**narrow, return_state=True, backend=backend)
    assert (y.dtype, h.dtype) == (torch.float32, narrow["A"].dtype)
    phase = delta * given["A"].abs().max().item() * length
    tolerance = OUTPUT[torch.float32] + phase * torch.finfo(torch.float32).eps
    for actual, expected in zip((y, h), recurrence(wide, [length] * BATCH, "zoh"), strict=True):
        assert_near(actual, expected, tolerance)


@pytest.mark.parametrize("complex_", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("discretization", ["zoh", "euler"])
@pytest.mark.parametrize("backend", [pytest.param("reference", marks=pytest.mark.slow), "torch"])
def test_gradients_equal_finite_differences(discretization: Any, complex_: bool, backend: Any) -> None:
    given = arguments(2, complex_)
    given |= {name: given[name][..., :2, :2] for name in ("A", "C", "initial_state")}
    given |= {name: given[name][..., :2] for name in ("bands", "delta", "mix", "D")}
    options: dict[str, Any] = {"lengths": torch.tensor([2, 0, 1]), "discretization": discretization, "backend": backend}

    def scan(*values: Tensor) -> Any:
        return lti_scan(**dict(zip(given, values, strict=True)), return_state=True, **options)

    assert torch.autograd.gradcheck(scan, [x.contiguous().requires_grad_() for x in given.values()])


def test_an_unknown_discretization_is_named() -> None:
    with pytest.raises(ValueError, match="'zoh' or 'euler', got 'bilinear'"):
        lti_scan(**arguments(2, False), discretization="bilinear")  # type: ignore[arg-type]
