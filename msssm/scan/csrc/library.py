"""The compiled library of native CPU kernels, and the conversion of arguments for its C functions."""

import ctypes
import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

NOT_BUILT = "is not built: install a C++ compiler (g++ or clang++), then msssm again"
BUILT_WRONGLY = "was built with -ffast-math, which makes its results wrong: install msssm again without it in CXXFLAGS"
# The widest variant first, by what torch finds the processor capable of.
_VARIANTS = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}


@cache
def _found() -> ctypes.CDLL | None:
    """The widest variant that was built and that this processor supports; None if none was built."""
    for variant in _VARIANTS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",)):
        spec = importlib.util.find_spec(f"msssm.scan.csrc.{variant}")
        if spec is not None and spec.origin is not None:
            loaded = ctypes.CDLL(spec.origin)
            loaded.msssm_chunk.restype = loaded.msssm_groups.restype = ctypes.c_int64
            loaded.msssm_chunk.argtypes = [ctypes.c_int64, ctypes.c_int64]
            loaded.msssm_groups.argtypes = [ctypes.c_int64, ctypes.c_int64]
            loaded.msssm_strict.restype = ctypes.c_int
            loaded.msssm_strict.argtypes = [ctypes.c_float, ctypes.c_float]
            return loaded
    return None


@cache
def obstacle() -> str | None:
    """Why the library cannot be used, and what to do; None if it can."""
    loaded = _found()
    if loaded is None:
        return NOT_BUILT
    # The kernels do not survive arithmetic in another order than theirs.
    return None if loaded.msssm_strict(2.0**24, 1.0) else BUILT_WRONGLY


def library() -> ctypes.CDLL | None:
    """The library of the kernels; None if it cannot be used."""
    return _found() if obstacle() is None else None


def native() -> ctypes.CDLL:
    """The library; the caller has checked that it exists."""
    loaded = _found()
    assert loaded is not None, "checked by the caller"
    return loaded


def integers(*values: int) -> Any:
    """Converts integers to a C array of int64."""
    return (ctypes.c_int64 * len(values))(*values)


def pointers(*tensors: Tensor | None) -> Any:
    """Converts tensors to a C array of pointers, null for None."""
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Converts a tensor to a pointer, null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def strides(*tensors: Tensor) -> Any:
    """Converts the strides of row, step and band of tensors (B, L, M, ...) to a C array."""
    return integers(*(stride for tensor in tensors for stride in tensor.stride()[:3]))


def planes(x: Tensor | None) -> Sequence[Tensor | None]:
    """Splits x (..., D, N) into contiguous real and imaginary parts (..., N, D), the latter None for a real x."""
    if x is None:
        return None, None
    turned = x.transpose(-1, -2)
    if not x.is_complex():
        return turned.contiguous(), None
    return turned.real.contiguous(), turned.imag.contiguous()
