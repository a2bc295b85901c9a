"""Arguments, results and the float64 truth for the tests of the GPU scans: in the interpreter, and on a GPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from msssm.scan import Discretization, multiscale_scan, reference, triton
from msssm.scan.mixing import mix_bands
from tests.support.tolerances import KERNEL_GRADIENT, KERNEL_OUTPUT, assert_near

Arguments = dict[str, Tensor | None]
HALF = ("u", "delta", "B", "C", "mix")  # stored in the dtype asked for; the others are float32


def selective_arguments(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    step: float = 0.3,
    lengths: list[int] | None = None,
    bias: bool = False,
) -> Arguments:
    """Arguments of `msssm.scan.triton.multiscale_scan`, but the discretization; shape (B, L, M, D, N, H)."""
    batch, length, M, D, N, heads = shape
    g = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g)

    given: Arguments = {
        "u": normal(batch, length, M, D),
        "delta": normal(batch, length, M, D) - 2 if bias else step * normal(batch, length, M, D).abs(),
        "A": -4 * torch.rand(M, D, N, generator=g) - 0.1,
        "B": normal(batch, length, M, N),
        "C": normal(batch, length, M, N),
        "mix": normal(batch, length, M, heads),
        "D": normal(M, D),
        "delta_bias": normal(M, D) if bias else None,
        "lengths": None if lengths is None else torch.tensor(lengths),
        "initial_state": normal(batch, M, D, N),
    }
    return {name: x.to(dtype) if name in HALF and x is not None else x for name, x in given.items()}


def lti_arguments(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    is_complex: bool = False,
    lengths: list[int] | None = None,
) -> Arguments:
    """Arguments of `msssm.scan.triton.lti_scan`; shape (B, L, M, D, N, H)."""
    batch, length, M, D, N, heads = shape
    g = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*size, generator=g, dtype=kind)

    kind = torch.complex64 if is_complex else torch.float32
    decay = torch.exp(-0.3 * torch.rand(M, D, N, generator=g))
    return {
        "u": normal(batch, length, M, D).to(dtype),
        "decay": decay * torch.exp(3j * normal(M, D, N)) if is_complex else decay,
        "weight": normal(M, D, N, kind=kind),
        "mix": normal(batch, length, M, heads).to(dtype),
        "D": normal(M, D),
        "lengths": None if lengths is None else torch.tensor(lengths),
        "initial_state": normal(batch, M, D, N, kind=kind),
    }


def _results(given: Arguments, scan: Callable[..., tuple[Tensor, Tensor]], wide: bool) -> dict[str, Tensor]:
    """y, the last state, and the gradients of a fixed linear loss, by name."""

    def leaf(x: Tensor | None) -> Tensor | None:
        if x is None or x.dtype == torch.int64:
            return x
        dtype = (torch.complex128 if x.is_complex() else torch.float64) if wide else x.dtype
        return x.detach().to(dtype).requires_grad_()

    leaves = {name: leaf(x) for name, x in given.items()}
    y, state = scan(**leaves)
    assert given["u"] is not None
    g = torch.Generator().manual_seed(99)
    by_y = torch.randn(y.shape, generator=g).to(given["u"].dtype).to(y)
    by_state = torch.randn(state.shape, generator=g, dtype=torch.complex64 if state.is_complex() else torch.float32)
    wanted = {name: x for name, x in leaves.items() if x is not None and x.requires_grad}
    grads = torch.autograd.grad((y, state), list(wanted.values()), (by_y, by_state.to(state)))
    return {"y": y, "state": state, **dict(zip(wanted, grads, strict=True))}


def selective_results(given: Arguments, discretization: Discretization) -> dict[str, Tensor]:
    return _results(given, lambda **x: triton.multiscale_scan(**x, discretization=discretization), wide=False)


def selective_truth(given: Arguments, discretization: Discretization) -> dict[str, Tensor]:
    def scan(u: Tensor, **x: Tensor) -> tuple[Tensor, Tensor]:
        return multiscale_scan(u, **x, return_state=True, discretization=discretization, backend="reference")  # type: ignore[return-value]

    return _results(given, scan, wide=True)


def lti_results(given: Arguments) -> dict[str, Tensor]:
    return _results(given, triton.lti_scan, wide=False)


def lti_truth(given: Arguments) -> dict[str, Tensor]:
    def scan(
        u: Tensor, decay: Tensor, weight: Tensor, mix: Tensor, D: Tensor, lengths: Tensor | None, initial_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        mask = None
        if lengths is not None:
            mask = torch.arange(u.shape[1], device=u.device) < lengths.unsqueeze(1)
            u, mix = (torch.where(mask[:, :, None, None], x, 0) for x in (u, mix))
        y, state = reference.banded_lti(u, decay, weight, mask, initial_state)
        return mix_bands(y + D * u, mix), state

    return _results(given, scan, wide=True)


def assert_all_near(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, x in actual.items():
        kind = torch.float32 if x.is_complex() else x.dtype
        try:
            assert_near(x, expected[name], (KERNEL_OUTPUT if name in ("y", "state") else KERNEL_GRADIENT)[kind])
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
