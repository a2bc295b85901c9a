"""The native kernels for CPUs: the compiled library, and how arguments reach its plain C functions."""

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
        spec = importlib.util.find_spec(f"msssm.scan.cpu.{variant}")
        if spec is not None and spec.origin is not None:
            loaded = ctypes.CDLL(spec.origin)
            loaded.msssm_segment.restype = loaded.msssm_groups.restype = ctypes.c_int64
            loaded.msssm_segment.argtypes = [ctypes.c_int64, ctypes.c_int64]
            loaded.msssm_groups.argtypes = [ctypes.c_int64, ctypes.c_int64]
            return loaded
    return None


def native() -> ctypes.CDLL:
    """The library, which the caller has found to be there."""
    loaded = library()
    assert loaded is not None, "checked by the caller"
    return loaded


def integers(*values: int) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


def pointers(*tensors: Tensor | None) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def strides(*tensors: Tensor) -> Any:
    """(row, step, band) of each (B, L, M, ...)."""
    return integers(*(stride for tensor in tensors for stride in tensor.stride()[:3]))


def planes(x: Tensor | None) -> Sequence[Tensor | None]:
    """States last, (..., D, N) -> the real and the imaginary part (..., N, D), None for that of a real tensor."""
    if x is None:
        return None, None
    turned = x.transpose(-1, -2)
    if not x.is_complex():
        return turned.contiguous(), None
    return turned.real.contiguous(), turned.imag.contiguous()
