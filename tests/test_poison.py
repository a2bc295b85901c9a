"""Every test of this suite allocates poisoned memory; a kernel that leaves an element out is seen."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from msssm.decomposition import MultiScaleDecomposition
from msssm.scan.csrc.library import library, native
from msssm.scan.decomposition import cpu as decomposition

X = torch.zeros(2, 3)
ALLOCATED: dict[str, Any] = {
    "empty": lambda dtype: torch.empty(2, 3, dtype=dtype),
    "of a parameter": lambda dtype: torch.nn.Parameter(torch.empty(2, 3, dtype=dtype), requires_grad=False),
    "empty_like": lambda dtype: torch.empty_like(X, dtype=dtype),
    "empty_strided": lambda dtype: torch.empty_strided((2, 3), (1, 2), dtype=dtype),
    "empty_permuted": lambda dtype: torch.empty_permuted((2, 3), (1, 0), dtype=dtype),
    "new_empty": lambda dtype: X.new_empty(2, 3, dtype=dtype),
    "new_empty_strided": lambda dtype: X.new_empty_strided((2, 3), (1, 2), dtype=dtype),
    "numpy": lambda dtype: torch.from_numpy(np.empty((2, 3), str(dtype).removeprefix("torch."))),
    "numpy, like": lambda dtype: torch.from_numpy(np.empty_like(X.numpy(), str(dtype).removeprefix("torch."))),
}


@pytest.mark.parametrize("name", ALLOCATED)
def test_new_memory_is_poisoned(name: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.float16):
        assert ALLOCATED[name](dtype).isnan().all()
    z = ALLOCATED[name](torch.complex64)
    assert (z.real.isnan() & z.imag.isnan()).all()
    for dtype in (torch.uint8, torch.int64):
        assert (ALLOCATED[name](dtype) == torch.iinfo(dtype).max).all()


@pytest.mark.skipif(library() is None, reason="the native kernels are not built")
def test_a_kernel_that_leaves_elements_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that writes nothing, and one that is told of a step less than there are."""
    layer, x = MultiScaleDecomposition(3, 2, 2, backend="cpu"), torch.randn(1, 5, 3)
    assert not layer(x).isnan().any()

    def short(sizes: Any, *others: Any) -> None:
        sizes[1] -= 1
        native().msssm_decomposition_forward(sizes, *others)

    for kernel, written in ((lambda *args: None, 0), (short, 4)):
        monkeypatch.setattr(decomposition, "native", lambda k=kernel: SimpleNamespace(msssm_decomposition_forward=k))
        bands = layer(x)
        assert not bands[:, :written].isnan().any()
        assert bands[:, written:].isnan().all()
