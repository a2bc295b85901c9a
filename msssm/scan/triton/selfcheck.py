"""The check of the Triton kernels on a device: are they right, and faster than plain torch?

Each configuration runs one real shape, compared with plain torch in float64, and is timed. The fastest then runs small
odd shapes in every dtype, compared with the sequential reference: outputs, last state, every gradient, and a second run
bit by bit. Most of its seconds are compilation, which Triton caches on disk.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import product
from typing import NamedTuple, cast

import torch
from torch import Tensor

from msssm.scan.dispatch import Backend
from msssm.scan.lti import lti_scan
from msssm.scan.selective import multiscale_scan
from msssm.scan.triton.verdict import Kernels, Verdict

# Largest errors relative to the largest value, by the dtype in which a result is stored; in half precision, one unit in
# the last place.
OUTPUT = {torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
GRADIENT = OUTPUT | {torch.float32: 2e-4}

RESULTS = "y", "the last state"
Arguments = dict[str, Tensor | None]

KINDS: dict[Kernels, tuple[str, str]] = {"selective": ("zoh", "euler"), "lti": ("real", "complex")}


class Case(NamedTuple):
    """One set of arguments of an operator."""

    shape: tuple[int, int, int, int, int, int]  # (B, L, M, D, N, H)
    kind: str  # discretization of the selective scan, or "real" or "complex" of the time-invariant one
    dtype: torch.dtype  # of the bands
    others: torch.dtype  # of all else that varies with time
    options: bool  # skip, bias of the step sizes, lengths and initial state

    def __str__(self) -> str:
        """Describes the case in a message."""
        dtypes = " with ".join(str(d).removeprefix("torch.") for d in dict.fromkeys((self.dtype, self.others)))
        sizes = ", ".join(f"{name} = {size}" for name, size in zip("BLMDNH", self.shape, strict=True))
        return f"{self.kind}, {dtypes}, {sizes}{', lengths and states' if self.options else ''}"


def cases(kernels: Kernels) -> list[Case]:
    """Cases with lengths cut into chunks and one that is not, and blocks that channels or states do not fill."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return [
        *(Case((3, 261, 2, 40, 5, 2), kind, dtype, dtype, True) for kind, dtype in product(KINDS[kernels], dtypes)),
        # As under autocast.
        *(Case((2, 67, 1, 33, 20, 1), kind, torch.float32, torch.bfloat16, False) for kind in KINDS[kernels]),
    ]


def race(kernels: Kernels) -> Case:
    """The case that is timed: a layer of medium size with default options."""
    return Case((8, 1024, 5, 128, 16, 1), KINDS[kernels][0], torch.float32, torch.float32, False)


def examine(kernels: Kernels, device: torch.device) -> Verdict:
    """Runs the whole check, which takes some seconds.

    It runs in a new thread, which inherits neither grad or inference mode nor autocast, default device, transforms,
    tracing or streams.

    Raises:
        torch.OutOfMemoryError: the device has no memory left.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_examine, kernels, device).result()


def _examine(kernels: Kernels, device: torch.device) -> Verdict:
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        try:
            return _race_and_check(kernels, device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of compilation or a launch: plain torch runs instead
            return Verdict(_summary(error))


def _race_and_check(kernels: Kernels, device: torch.device) -> Verdict:
    from msssm.scan.triton.common import CONFIGURATIONS, select

    case = race(kernels)
    given = arguments(kernels, case)
    truth = evaluate(kernels, case, place(given, device, wide=True), "torch")
    placed = place(given, device)
    times: dict[int, float] = {}
    faults: list[str] = []
    for index in range(len(CONFIGURATIONS)):
        select(kernels, device, index)
        try:
            fault = disagreement(kernels, case, placed, truth)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # another configuration may need fewer resources
            fault = _summary(error)
        if fault is None:
            times[index] = milliseconds(lambda: evaluate(kernels, case, placed, "triton"), device, runs=5)
        else:
            faults.append(fault)
    fastest = min(times, key=times.__getitem__, default=0)
    select(kernels, device, fastest)
    if not times:
        return Verdict(faults[0])
    for small in cases(kernels):
        given = arguments(kernels, small)
        truth = evaluate(kernels, small, place(given, torch.device("cpu"), wide=True), "reference")
        fault = disagreement(kernels, small, place(given, device), truth)
        if fault is not None:
            return Verdict(fault)
    return Verdict(
        None, fastest, times[fastest], milliseconds(lambda: evaluate(kernels, case, placed, "torch"), device, runs=2)
    )


def disagreement(kernels: Kernels, case: Case, placed: Arguments, truth: dict[str, Tensor]) -> str | None:
    """Describes which result of the kernels is wrong and by how much; None if all are right and repeat bit by bit."""
    first, again = (evaluate(kernels, case, placed, "triton") for _ in range(2))
    with torch.no_grad():
        inferred = dict(zip(RESULTS, scan(kernels, case, placed, "triton"), strict=True))
    for name, expected in truth.items():
        kind = torch.float32 if first[name].is_complex() else first[name].dtype
        allowed = (OUTPUT if name in RESULTS else GRADIENT)[kind]
        for actual, where in ((first[name], ""), (inferred.get(name), " without gradients")):
            error = 0.0 if actual is None else relative_error(actual, expected)
            if error > allowed:
                return f"{name}{where} is off by {error:.1e} of its largest value, {allowed:.1e} is allowed ({case})"
        if not torch.equal(first[name], again[name]):
            return f"{name} differs between two runs ({case})"
    return None


def arguments(kernels: Kernels, case: Case) -> Arguments:
    """Arguments of the operator by name, and the gradients `by_y` and `by_state` of its results, on the CPU.

    Padding past a row's length is NaN.
    """
    batch, length, M, D, N, heads = case.shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=dtype, device="cpu")

    number = torch.complex64 if case.kind == "complex" else torch.float32
    bands, mix = normal(batch, length, M, D).to(case.dtype), normal(batch, length, M, heads).to(case.others)
    given: Arguments = {"bands": bands, "mix": mix}
    if kernels == "selective":
        delta = normal(batch, length, M, D)
        given["delta"] = (delta - 2 if case.options else 0.3 * delta.abs()).to(case.others)
        given["B"], given["C"] = (normal(batch, length, M, N).to(case.others) for _ in range(2))
        given["A"] = -0.1 - normal(M, D, N).abs()
        given["delta_bias"] = normal(M, D) if case.options else None
    else:
        given["delta"] = 0.02 + 0.1 * normal(M, D).abs()
        given["A"] = -1 - normal(M, D, N).abs() + (5j * normal(M, D, N) if case.kind == "complex" else 0)
        given["C"] = normal(M, D, N, dtype=number)
    given["D"], given["initial_state"], given["lengths"] = None, None, None
    if case.options:
        lengths = [length, length // 2, 0]
        given["D"], given["initial_state"] = normal(M, D), normal(batch, M, D, N, dtype=number)
        given["lengths"] = torch.tensor(lengths[:batch], device="cpu")
        for name in ("bands", "delta", "B", "C", "mix"):
            if (x := given.get(name)) is not None and x.ndim == 4:
                for row, end in enumerate(lengths[:batch]):
                    x[row, end:] = torch.nan
    given["by_y"] = normal(batch, length, D).to(case.dtype)
    given["by_state"] = normal(batch, M, D, N, dtype=number)
    return given


def place(given: Arguments, device: torch.device, *, wide: bool = False) -> Arguments:
    """Moves the arguments to a device, in float64 if `wide`, as leaves that require gradients."""

    def leaf(name: str, x: Tensor | None) -> Tensor | None:
        if x is None or name == "lengths":
            return x if x is None else x.to(device)
        dtype = x.dtype if not wide else torch.complex128 if x.is_complex() else torch.float64
        return x.to(device, dtype).detach().requires_grad_(not name.startswith("by_"))

    return {name: leaf(name, x) for name, x in given.items()}


def scan(kernels: Kernels, case: Case, placed: Arguments, backend: Backend) -> tuple[Tensor, Tensor]:
    """Runs the operator; returns y and the last state."""
    given = {name: x for name, x in placed.items() if not name.startswith("by_")}
    if kernels == "selective":
        given["discretization"] = case.kind  # type: ignore[assignment]
    operator = multiscale_scan if kernels == "selective" else lti_scan
    return cast(tuple[Tensor, Tensor], operator(**given, return_state=True, backend=backend))  # type: ignore[arg-type]


def evaluate(kernels: Kernels, case: Case, placed: Arguments, backend: Backend) -> dict[str, Tensor]:
    """Computes results and gradients of the arguments, by name."""
    results = scan(kernels, case, placed, backend)
    leaves = {f"gradient of {name}": x for name, x in placed.items() if x is not None and x.requires_grad}
    gradients = torch.autograd.grad(results, list(leaves.values()), (placed["by_y"], placed["by_state"]))
    return dict(zip((*RESULTS, *leaves), (*(x.detach() for x in results), *gradients), strict=True))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Error max |actual - expected| / max |expected|; infinite if a value is not finite."""
    wide = torch.complex128 if expected.is_complex() else torch.float64
    expected = expected.to(wide)
    difference = (actual.to(expected) - expected).abs().max() / expected.abs().max()
    return difference.nan_to_num(torch.inf).item()


def milliseconds(function: Callable[[], object], device: torch.device, runs: int) -> float:
    """Time of the fastest of some runs."""
    times = []
    for _ in range(runs):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def _summary(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
