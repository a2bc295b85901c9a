"""The native scan for CPUs: `native/scan.cpp` behind two `torch.library` operators, float32 only.

The operators have fake implementations and a backward, so that autograd, `torch.compile` and `torch.export` go through.
"""

import ctypes
import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

# The widest variant first, by what torch finds the processor capable of.
_VARIANTS = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}


@cache
def library() -> ctypes.CDLL | None:
    """The widest variant that this processor runs and that the installation built; None where none was built."""
    for variant in _VARIANTS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",)):
        spec = importlib.util.find_spec(f"msssm.scan.native.{variant}")
        if spec is not None and spec.origin is not None:
            loaded = ctypes.CDLL(spec.origin)
            loaded.msssm_tile.restype = loaded.msssm_groups.restype = ctypes.c_int64
            loaded.msssm_groups.argtypes = [ctypes.c_int64, ctypes.c_int64]
            return loaded
    return None


def _native() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None, "checked by the caller"
    return loaded


def _sizes(u: Tensor, mix: Tensor, B: Tensor, zoh: bool) -> Any:
    batch, length, bands, channels = u.shape
    return (ctypes.c_int64 * 8)(
        batch, length, bands, channels, B.shape[-1], mix.shape[-1], int(zoh), torch.get_num_threads()
    )


def _pointers(tensors: Sequence[Tensor | None]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


def _tiles(length: int) -> int:
    return -(-length // int(_native().msssm_tile()))


@torch.library.custom_op("msssm::scan", mutates_args=(), device_types="cpu")
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    zoh: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `multiscale_scan`, but A (M, N, D) and states (B, M, N, D), all contiguous; mix (B, L, M, H).

    Returns y (B, L, D), the last state, and with `keep` the states before each tile of steps, (B, tiles, M, N, D).
    """
    y, last, checkpoints = _scan_fake(u, delta, A, B, C, mix, D, initial, zoh, keep)
    _native().msssm_scan_forward(
        _sizes(u, mix, B, zoh),
        _pointers((u, delta, A, B, C, mix, D, initial)),
        ctypes.c_void_p(y.data_ptr()),
        ctypes.c_void_p(last.data_ptr()),
        ctypes.c_void_p(checkpoints.data_ptr()) if keep else None,
    )
    return y, last, checkpoints


@_scan.register_fake
def _scan_fake(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    zoh: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, bands, channels = u.shape
    state = (bands, B.shape[-1], channels)
    return (
        u.new_empty(batch, length, channels),
        u.new_empty(batch, *state),
        u.new_empty(batch, _tiles(length) if keep else 0, *state),
    )


@torch.library.custom_op("msssm::scan_backward", mutates_args=(), device_types="cpu")
def _scan_backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_last: Tensor,
    zoh: bool,
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, mix, D (bands of zeros without one) and the initial state."""
    batch, _, bands, channels = u.shape
    groups = int(_native().msssm_groups(batch, channels))
    grad_u, grad_delta, grad_initial = torch.empty_like(u), torch.empty_like(delta), torch.empty_like(grad_last)
    # Partial sums, added up below in a fixed order: per row of the batch, or per group of channels.
    grad_A, grad_D = u.new_empty(batch, *A.shape), u.new_zeros(batch, bands, channels)
    grad_B, grad_C, grad_mix = (x.new_zeros(groups, *x.shape) for x in (B, C, mix))
    _native().msssm_scan_backward(
        _sizes(u, mix, B, zoh),
        _pointers((u, delta, A, B, C, mix, D, initial)),
        ctypes.c_void_p(checkpoints.data_ptr()),
        ctypes.c_void_p(grad_y.data_ptr()),
        ctypes.c_void_p(grad_last.data_ptr()),
        _pointers((grad_u, grad_delta, grad_A, grad_B, grad_C, grad_mix, grad_D, grad_initial)),
    )
    summed = [x.sum(0) for x in (grad_A, grad_B, grad_C, grad_mix, grad_D)]
    return [grad_u, grad_delta, *summed, grad_initial]


@_scan_backward.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_last: Tensor,
    zoh: bool,
) -> list[Tensor]:
    skip = u.new_empty(u.shape[2:])
    return [torch.empty_like(x) for x in (u, delta, A, B, C, mix, skip, grad_last)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.zoh, _ = inputs
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, D, initial, checkpoints = ctx.saved_tensors
    *grads, grad_D, grad_initial = _scan_backward(
        *inputs, D, initial, checkpoints, grad_y.contiguous(), grad_last.contiguous(), ctx.zoh
    )
    return *grads, None if D is None else grad_D, None if initial is None else grad_initial, None, None


torch.library.register_autograd("msssm::scan", _backward, setup_context=_setup_context)


def multiscale_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    mix: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    discretization: str,
) -> tuple[Tensor, Tensor]:
    """The fused recurrence, skip and mix of `msssm.scan.multiscale_scan`; float32 tensors, mix (B, L, M, H).

    Returns y (B, L, D) and the last state (B, M, D, N).
    """
    tensors = [x.contiguous() for x in (u, delta, A.transpose(1, 2), B, C, mix)]
    skip = None if D is None else D.contiguous()
    initial = None if state is None else state.transpose(2, 3).contiguous()
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*tensors, skip, initial))
    y, last, _ = _scan(*tensors, skip, initial, discretization == "zoh", needs_grad)
    return y, last.transpose(2, 3)
