"""One table of tolerances: every error that a test allows is one of these, or `allowed` with its reason.

Relative to the largest expected value, unless a test compares numbers near 1, where they are absolute as well.
"""

import torch
from torch import Tensor

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}


def _roundings(count: int) -> dict[torch.dtype, float]:
    return {dtype: count * EPS[dtype] for dtype in (torch.float32, torch.float64)}


# A recurrence that decays forgets its rounding: a few dozen stand for outputs and states of any length.
OUTPUT = _roundings(64)
# Gradients of parameters sum over batch, length and channels: a few hundred terms.
GRADIENT = _roundings(512)
# One step, one level or one kernel of small size: less than a dozen, and the reference's own.
STEP = _roundings(16)
# Kernels sum in float32, whatever they store; half precision may be off by one unit in the last place.
KERNEL_OUTPUT = {dtype: EPS[dtype] for dtype in (torch.bfloat16, torch.float16)} | {
    torch.float32: 8 * EPS[torch.float32]
}
KERNEL_GRADIENT = KERNEL_OUTPUT | {torch.float32: 32 * EPS[torch.float32]}
# A whole layer whose parameters, inputs and sums are all of half precision.
HALF_LAYER = {torch.bfloat16: 0.05, torch.float16: 0.01}
# Dynamic quantisation to 8 bits fits its scale to what it sees, a sequence or a step.
QUANTISED = 0.15
# Losses of the first steps in float64, on processors and versions of torch that round otherwise: some 1e-15 apart.
GOLDEN = 1e-11
# Numbers near 1: of a chain of operations; and a mean, a metric or a pixel, which is next to none.
FLOAT32, FLOAT64 = OUTPUT[torch.float32], OUTPUT[torch.float64]
METRIC = 8 * EPS[torch.float32]


def allowed(error: float, because: str) -> float:
    """An error that rounding does not explain: of sampling, of a file's resolution, of an approximation."""
    assert because
    return error


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """max |actual - expected| <= tolerance max |expected|; NaN on either side fails."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    if expected.numel():
        wide = torch.complex128 if expected.is_complex() else torch.float64
        error = (actual.detach().to(wide) - expected.detach().to(wide)).abs().max().item()
        scale = expected.detach().to(wide).abs().max().item()
        assert error <= tolerance * scale, f"error {error:.3g} > {tolerance:.3g} * {scale:.3g}"
