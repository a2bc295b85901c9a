"""`lti_scan` with 8 complex-conjugate pairs beside S4D's kernel and FFT; sizes (B, L, D, pairs), one band."""

import math

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.compare import Case, Row, compare
from msssm.scan import lti_scan

SIZES = [(8, 1024, 128, 8), (1, 16384, 64, 8)]
OURS = {"msssm": "auto", "pure torch": "torch", "reference": "reference"}
PEER = "S4D: Vandermonde and FFT"


def run(device: torch.device, quick: bool) -> list[Row]:
    """Both sizes; the quick run only the first."""

    def prepare(method: str, size: tuple[int, ...], dtype: torch.dtype) -> Case:
        batch, length, channels, pairs = size
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        kind = dtype.to_complex()
        u = normal(batch, length, 1, channels)
        delta = torch.exp(normal(1, channels) * 0.5 - 4)
        A = torch.complex(torch.full((pairs,), -0.5).double(), math.pi * torch.arange(pairs).double())
        C = torch.view_as_complex(normal(1, channels, pairs, 2))
        leaves = [
            u.to(device, dtype),
            delta.to(device, dtype),
            A.expand(1, channels, pairs).contiguous().to(device, kind),
            C.to(device, kind),
        ]
        leaves = [x.requires_grad_() for x in leaves]
        mix = torch.ones(batch, length, 1, device=device, dtype=dtype)
        if method == PEER:
            u, delta, A, C = leaves
            return Case(lambda: peers.s4d_convolution(u, delta, A, C, mix), leaves)
        return Case(lambda: lti_scan(*leaves, mix, backend=OURS[method]), leaves)  # type: ignore

    rows = []
    for size in SIZES[:1] if quick else SIZES:
        rows += compare("lti_scan", str(size), prepare, ["msssm", "pure torch", PEER], size, (2, 67, *size[2:]), device)
    return rows
