"""Numbers behind docs/backends.md: errors in float32 at extreme step sizes, and the speed of denormal states.

python -m benchmarks.precision
"""

from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import in_turn
from msssm.scan import Backend, multiscale_scan
from msssm.scan.dispatch import choose

EXPONENTS = (0.0, 1e-7, 1e-4, 1.0, 88.0, 1e4)
NAMES = ("y", "state", "grad u", "grad delta", "grad A", "grad B")


def arguments(exponent: float, dtype: torch.dtype) -> list[Tensor]:
    """u, delta, A, B, C, mix, initial state with delta max|A| = `exponent`, the same float32 values in every dtype."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    batch, length, bands, channels, states = 2, 64, 1, 16, 4
    tensors = [
        normal(batch, length, bands, channels),
        torch.full((batch, length, bands, channels), exponent),
        -torch.linspace(0.5, 1, channels * states).view(bands, channels, states),
        normal(batch, length, bands, states),
        normal(batch, length, bands, states),
        torch.ones(batch, length, bands),
        normal(batch, bands, channels, states),
    ]
    return [x.to(dtype).requires_grad_() for x in tensors]


def results(exponent: float, dtype: torch.dtype, backend: Backend) -> list[Tensor]:
    """What `NAMES` lists."""
    *tensors, initial = arguments(exponent, dtype)
    y, state = multiscale_scan(*tensors, initial_state=initial, return_state=True, backend=backend)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return [y.detach(), state.detach(), *torch.autograd.grad((y * weight).sum() + state.sum(), tensors[:4])]


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative to the largest expected value, or absolute where all are 0; NaN counts as infinite."""
    scale = expected.abs().max().item() or 1.0
    return (actual.double() - expected).abs().max().nan_to_num(torch.inf).item() / scale


def errors_table(backends: list[Backend]) -> list[str]:
    """Markdown: a row per backend and |delta A|."""
    lines = [f"| |delta A| | backend | {' | '.join(NAMES)} |".replace("|delta A|", r"\|delta A\|")]
    lines.append(f"|{' --- |' * (len(NAMES) + 2)}")
    for exponent in EXPONENTS:
        # Its backward is in closed form; autograd's derivative of the reference's expm1 is 0 from |delta A| = 37 on.
        expected = results(exponent, torch.float64, "torch")
        for backend in backends:
            actual = results(exponent, torch.float32, backend)
            cells = [f"{error(a, e):.0e}" for a, e in zip(actual, expected, strict=True)]
            lines.append(f"| {exponent:g} | {backend} | {' | '.join(cells)} |")
    return lines


def gradient_of_A(exponent: float, length: int, dtype: torch.dtype, backend: Backend) -> Tensor:
    """Of the sum of the outputs of `length` steps from a state of zero."""
    u, delta, A, B, C, mix, _ = arguments(exponent, dtype)
    u, delta, B, C, mix = (x[:, :length] for x in (u, delta, B, C, mix))
    y = multiscale_scan(u, delta, A, B, C, mix, backend=backend)
    assert isinstance(y, Tensor)
    [gradient] = torch.autograd.grad(y.sum(), A)
    return gradient


def zero_state_table(backends: list[Backend]) -> list[str]:
    """Markdown: error of the gradient of A from a state of zero, after one step and after 64."""
    lines = ["| \\|delta A\\| | steps | " + " | ".join(backends) + " |", f"|{' --- |' * (len(backends) + 2)}"]
    for exponent in (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        for length in (1, 64):
            expected = gradient_of_A(exponent, length, torch.float64, "torch")
            cells = [
                f"{error(gradient_of_A(exponent, length, torch.float32, backend), expected):.0e}"
                for backend in backends
            ]
            lines.append(f"| {exponent:g} | {length} | {' | '.join(cells)} |")
    return lines


def denormals_table(backends: list[Backend], length: int = 2000) -> list[str]:
    """Markdown: milliseconds of a forward with inputs throughout, and with inputs of 0 after step 10."""
    lines = [
        "| backend | delta | inputs throughout | 0 after step 10 | denormal states |",
        "|" + " --- |" * 5,
    ]
    for delta in (0.5, 0.05):
        A = -torch.arange(1.0, 17).repeat(5, 64, 1)
        generator = torch.Generator().manual_seed(0)
        shapes = [(8, length, 5, 64), (8, length, 5, 16), (8, length, 5, 16), (8, length, 5)]
        u, B, C, mix = (torch.randn(*shape, generator=generator) for shape in shapes)
        silent = torch.cat((u[:, :10], torch.zeros_like(u[:, 10:])), 1)
        steps = torch.full_like(u, delta)
        # Until the slowest state is denormal: its decay per step is exp(-delta).
        until = min(length, 10 + int(95 / delta))
        first = [x[:, :until] for x in (silent, steps, B, C, mix)]
        _, state = multiscale_scan(
            first[0], first[1], A, first[2], first[3], first[4], return_state=True, backend="reference"
        )
        tiny = ((state != 0) & (state.abs() < torch.finfo(torch.float32).tiny)).float().mean().item()
        for backend in backends:
            times = in_turn(
                {
                    name: partial(multiscale_scan, x, steps, A, B, C, mix, backend=backend)
                    for name, x in (("throughout", u), ("silent", silent))
                },
                torch.device("cpu"),
            )
            cells = f"{times['throughout'].best:.1f} | {times['silent'].best:.1f} | {tiny:.1%} after {until} steps"
            lines.append(f"| {backend} | {delta} | {cells} |")
    return lines


def main() -> None:
    backends: list[Backend] = ["reference", "torch"]
    if choose("auto", torch.device("cpu"), torch.float32) == "cpu":
        backends.append("cpu")
    print("\n".join(errors_table(backends)))
    print()
    print("\n".join(zero_state_table(backends)))
    print()
    print("\n".join(denormals_table([b for b in backends if b != "reference"])))


if __name__ == "__main__":
    main()
