"""Forward and forward + backward of `selective_scan`: each backend beside the sequential reference, in one run.

    python -m benchmarks.scan [--threads 2]

Each method in turn, best of several repeats, ratios to the reference; no figure before the results agree.
"""

import argparse
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor

from msssm.scan import Backend, Discretization, cpu, selective_scan

SHAPES = [(8, 1024, 128, 16), (8, 2048, 128, 16), (1, 16384, 64, 16)]  # (B, L, D, N)


def inputs(batch: int, length: int, channels: int, states: int) -> list[Tensor]:
    """u, delta, A, B, C as a freshly initialised layer would make them, with gradients."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    delta = torch.rand(batch, length, channels, generator=generator) * 0.1
    u, B, C = normal(batch, length, channels), normal(batch, length, states), normal(batch, length, states)
    return [x.requires_grad_() for x in (u, delta, A, B, C)]


def best(function: Callable[[], object], repeats: int = 5) -> float:
    """Shortest of some runs, in milliseconds, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def measure(tensors: list[Tensor], discretization: Discretization, backend: Backend) -> tuple[Tensor, float, float]:
    """The result, and the milliseconds of forward and of forward + backward."""

    def forward() -> Tensor:
        y = selective_scan(*tensors, discretization=discretization, backend=backend)
        assert isinstance(y, Tensor)
        return y

    with torch.no_grad():
        alone = best(forward)
    return forward().detach(), alone, best(lambda: forward().sum().backward())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    print("milliseconds, forward / forward + backward; in brackets how many times faster than the reference\n")
    backends: tuple[Backend, ...] = ("torch", "cpu") if cpu.library() else ("torch",)
    discretizations: tuple[Discretization, ...] = ("zoh", "euler")
    for shape in SHAPES:
        for discretization in discretizations:
            tensors = inputs(*shape)
            expected, alone, both = measure(tensors, discretization, "reference")
            print(f"{shape!s:<21}{discretization:<6} reference {alone:6.1f} / {both:6.1f}", end="")
            for backend in backends:
                result, fast_alone, fast_both = measure(tensors, discretization, backend)
                torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
                ratios = f"({alone / fast_alone:.1f}x / {both / fast_both:.1f}x)"
                print(f"   {backend} {fast_alone:5.1f} / {fast_both:5.1f} {ratios:<18}", end="")
            print(flush=True)


if __name__ == "__main__":
    main()
