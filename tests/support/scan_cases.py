"""Arguments, results and the float64 truth for the tests of the GPU scans: in the interpreter, and on a GPU."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from msssm.scan import Discretization, multiscale_scan
from msssm.scan.selective.operands import Operands
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
    """Operands of `msssm.scan.multiscale_scan`, but the discretization; shape (B, L, M, D, N, H)."""
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


def triton_scan(discretization: Discretization, **given: Tensor | None) -> tuple[Tensor, Tensor]:
    from msssm.scan.selective import triton  # not before the process that interprets it has been told so

    state = given.pop("initial_state")
    return triton.scan(Operands(**given, state=state), discretization)  # type: ignore[arg-type]


def selective_results(given: Arguments, discretization: Discretization) -> dict[str, Tensor]:
    return _results(given, partial(triton_scan, discretization=discretization), wide=False)


def selective_truth(given: Arguments, discretization: Discretization) -> dict[str, Tensor]:
    def scan(u: Tensor, **x: Tensor) -> tuple[Tensor, Tensor]:
        return multiscale_scan(u, **x, return_state=True, discretization=discretization, backend="reference")  # type: ignore[return-value]

    return _results(given, scan, wide=True)


def assert_all_near(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, x in actual.items():
        kind = torch.float32 if x.is_complex() else x.dtype
        try:
            assert_near(x, expected[name], (KERNEL_OUTPUT if name in ("y", "state") else KERNEL_GRADIENT)[kind])
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
