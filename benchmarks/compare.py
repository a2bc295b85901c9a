"""One comparison: several methods on the same problem, checked before they are timed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from benchmarks.timing import Timing, in_turn

# Largest error against the reference in float64, relative to the largest expected value.
OUTPUT, GRADIENT = 2e-5, 2e-4
FORWARD, BOTH = "forward", "forward + backward"


class Case(NamedTuple):
    """A computation at a size: `run()` gives y of the `leaves`, which have gradients."""

    run: Callable[[], Tensor]
    leaves: list[Tensor]


class Prepare(Protocol):
    """Makes the case of a method at a size, the same values for every method and dtype."""

    def __call__(self, method: str, size: tuple[int, ...], dtype: torch.dtype, /) -> Case: ...


@dataclass
class Row:
    """What one method measured on one case."""

    section: str
    case: str
    method: str
    elements: int = 0  # state steps, B L M D N
    moved: tuple[int, int] = (0, 0)  # bytes that a forward, and a forward + backward, must move
    times: dict[str, Timing] = field(default_factory=dict)
    error: float | None = None
    memory_mib: float | None = None
    note: str = ""


def evaluate(case: Case) -> list[Tensor]:
    """y, and the gradients of a fixed random weighting of it."""
    y = case.run()
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [y.detach(), *torch.autograd.grad(y, case.leaves, weight.to(y.device, y.dtype))]


def errors(actual: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Largest differences relative to the largest expected value; NaN counts as infinite."""
    found = []
    for a, e in zip(actual, expected, strict=True):
        wide = torch.complex128 if e.is_complex() else torch.float64
        difference = (a.to(wide) - e.to(wide)).abs().max()
        found.append((difference / e.to(wide).abs().max().clamp(min=1e-30)).nan_to_num(torch.inf).item())
    return found


def compare(
    section: str,
    case: str,
    prepare: Prepare,
    methods: list[str],
    size: tuple[int, ...],
    small: tuple[int, ...],
    device: torch.device,
    truth: str = "reference",
    forward_only: Mapping[str, str] | None = None,
    budget: float = 0.7,
) -> list[Row]:
    """Times of the methods whose results are right; the others get a row that says what is wrong, and no figure.

    Right means: y and every gradient at the size `small` equal those of the method `truth` in float64, and y at the
    full size equals that of the first method that passed.

    Args:
        section: Section of the report.
        case: label of the size.
        prepare: makes a case.
        methods: names that `prepare` knows.
        size: what is timed.
        small: what is checked with gradients.
        device: where it runs.
        truth: the method that the check trusts.
        forward_only: methods whose backward is not timed, and why.
        budget: seconds per method and direction.
    """
    expected = evaluate(prepare(truth, small, torch.float64))
    reasons = forward_only or {}
    rows, timed, full = [], {}, None
    for method in methods:
        row = Row(section, case, method, note=reasons.get(method, ""))
        rows.append(row)
        output, *gradients = errors(evaluate(prepare(method, small, torch.float32)), expected)
        row.error = max(output, *gradients)
        if output > OUTPUT or max(gradients) > GRADIENT:
            row.note = f"REFUSED: disagrees with {truth} (y {output:.1e}, gradients {max(gradients):.1e})"
            continue
        large = prepare(method, size, torch.float32)
        with torch.no_grad():
            y = large.run()
        full = y if full is None else full
        [error] = errors([y], [full])
        if error > 2 * OUTPUT:
            row.note = f"REFUSED: y at full size differs by {error:.1e} from {rows[0].method}"
            continue
        timed[method, FORWARD] = _forward(large)
        if method not in reasons:
            timed[method, BOTH] = _both(large)
    times = in_turn(timed, device, budget)
    for row in rows:
        row.times = {direction: t for (method, direction), t in times.items() if method == row.method}
    return rows


def _forward(case: Case) -> Callable[[], object]:
    def run() -> Tensor:
        with torch.no_grad():
            return case.run()

    return run


def _both(case: Case) -> Callable[[], object]:
    grad = torch.ones_like(case.run())
    return lambda: torch.autograd.grad(case.run(), case.leaves, grad)
