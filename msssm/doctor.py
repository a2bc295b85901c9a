"""The report of `msssm doctor`: what is installed, and each operator's backend, correctness and speed."""

import argparse
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from msssm.decomposition import MultiScaleDecomposition
from msssm.scan import Backend, lti_scan, multiscale_scan, selective_scan
from msssm.scan.cpu.library import library
from msssm.scan.dispatch import choose, fastest_on, obstacle
from msssm.scan.triton.selfcheck import milliseconds, relative_error
from msssm.scan.triton.verdict import KERNELS, Kernels, file_of, identity, settle

# Largest errors in float32 against the reference in float64, relative to the largest value.
OUTPUT, GRADIENT = 2e-5, 2e-4
BATCH, LENGTH, BANDS, CHANNELS, STATES = 2, 256, 5, 64, 16

_KERNELS: dict[str, Kernels] = {"selective_scan": "selective", "multiscale_scan": "selective", "lti_scan": "lti"}

Operator = Callable[[list[Tensor], Backend], Tensor]


class Check(NamedTuple):
    """Check of one operator on one device."""

    operator: str
    backend: str
    remedy: str  # why this is not the fastest backend, and what to do; empty if it is
    error: float  # relative to the tolerance: above 1, the result is wrong
    milliseconds: float | None  # forward + backward; None if the result is wrong
    speedup: float | None  # over the reference


def main(args: list[str]) -> None:
    """Prints the report.

    Raises:
        SystemExit: an operator disagrees with the reference (code 1).
    """
    parser = argparse.ArgumentParser(
        prog="msssm doctor",
        description="Says what is installed, on which backend each operator runs here and why, whether it agrees with "
        "its reference, and how fast it is. Ends with code 1 if one disagrees.",
        allow_abbrev=False,
    )
    parser.add_argument("--renew", action="store_true", help="check the Triton kernels on this GPU anew")
    options = parser.parse_args(args)
    for line in environment():
        print(line)
    wrong = False
    for device in devices():
        for line in verdicts(device, renew=options.renew):
            print(line, flush=True)
        checks = check(device)
        for line in describe(device, checks):
            print(line, flush=True)
        wrong |= any(found.milliseconds is None for found in checks)
    if wrong:
        raise SystemExit(1)


def environment() -> Iterator[str]:
    """Lines on versions, hardware, compiler and native library."""
    packages = {name: _version(name) for name in ("msssm", "torch", "triton", "lightning")}
    yield f"versions    python {platform.python_version()}, " + ", ".join(f"{n} {v}" for n, v in packages.items())
    capability = torch.backends.cpu.get_cpu_capability()
    yield f"processor   {processor()}, {capability}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}"
    yield f"threads     {_threads()}"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield f"GPU         {', '.join(gpus) or 'none that torch can use'}"
    yield f"compiler    {_compiler()}"
    loaded = library()
    built = None if loaded is None else Path(loaded._name).name.split(".")[0]
    yield f"native      {built or 'not built: install a C++ compiler (g++ or clang++), then msssm again'}"
    wanted = os.environ.get("MSSSM_BACKEND")
    if wanted:
        yield f"environment MSSSM_BACKEND={wanted} replaces backend='auto'; unset it for the fastest"


def devices() -> list[torch.device]:
    """The CPU, and the first GPU of each name."""
    gpus = {torch.cuda.get_device_name(i): torch.device("cuda", i) for i in reversed(range(torch.cuda.device_count()))}
    return [torch.device("cpu"), *sorted(gpus.values(), key=str)]


def verdicts(device: torch.device, *, renew: bool) -> Iterator[str]:
    """Lines on the verdict on the Triton kernels of a GPU, checked now or earlier, and the file that keeps it."""
    if fastest_on(device) != "triton" or obstacle("triton", device, torch.float32) is not None:
        return
    yield f"\nTriton kernels on {device}, {identity('selective', device)['device']}"
    for kernels in KERNELS:
        found = settle(kernels, device, renew=renew)
        if found is None:
            yield f"  {kernels:<16} not checked"
            continue
        if found.fault is not None:
            yield f"  {kernels:<16} NOT USED: {found.complaint}"
        else:
            name = "used" if found.backend == "triton" else "not used"
            yield (
                f"  {kernels:<16} right, {name}: {found.triton_ms:.2f} ms, plain torch {found.torch_ms:.2f} ms, "
                f"configuration {found.configuration}"
            )
        path = file_of(identity(kernels, device))
        kept = path is not None and path.exists()
        yield f"{'':<19}{f'kept in {path}; `msssm doctor --renew` checks again' if kept else 'kept for this process'}"


def check(device: torch.device) -> list[Check]:
    """Compares every operator and its gradients with the reference in float64, and times it; about a second."""
    return [_check(name, operator, tensors, device) for name, (operator, tensors) in operators().items()]


def describe(device: torch.device, checks: list[Check]) -> Iterator[str]:
    """Lines on the checks of a device."""
    yield f"\noperators on {device}, float32 (forward + backward of {BATCH} x {LENGTH} steps)"
    for found in checks:
        line = f"  {found.operator:<16} {found.backend:<9} "
        if found.milliseconds is None:
            yield f"{line} WRONG: differs from the reference by {found.error:.1e} times the tolerance; report this"
        else:
            yield f"{line} agrees, {found.milliseconds:7.2f} ms, {found.speedup:.1f} x the reference"
        if found.remedy:
            yield f"{'':<29}{found.remedy}"


def operators() -> dict[str, tuple[Operator, list[Tensor]]]:
    """Each operator with float64 arguments; its "reference" is the sequential recurrence, or plain convolutions."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def step(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64) * 0.1 + 1e-3

    def rates(*shape: int) -> Tensor:
        return -torch.arange(1.0, STATES + 1, dtype=torch.float64).expand(*shape, STATES).clone()

    time_varying = BATCH, LENGTH, BANDS
    selective = [
        normal(*time_varying, CHANNELS),
        step(*time_varying, CHANNELS),
        rates(BANDS, CHANNELS),
        normal(*time_varying, STATES),
        normal(*time_varying, STATES),
        normal(*time_varying),
    ]
    single = [x[:, :, 0].clone() if x.ndim == 4 else x[0].clone() for x in selective[:5]]
    invariant = [selective[0], step(BANDS, CHANNELS), selective[2], normal(BANDS, CHANNELS, STATES), selective[5]]
    filters = MultiScaleDecomposition(CHANNELS, BANDS - 2).double()
    split = [single[0], filters.low.detach(), filters.high.detach()]
    return {
        "selective_scan": (lambda t, backend: cast(Tensor, selective_scan(*t, backend=backend)), single),
        "multiscale_scan": (lambda t, backend: cast(Tensor, multiscale_scan(*t, backend=backend)), selective),
        "lti_scan": (lambda t, backend: cast(Tensor, lti_scan(*t, backend=backend)), invariant),
        "decomposition": (_decompose, split),
    }


def _decompose(tensors: list[Tensor], backend: Backend) -> Tensor:
    x, low, high = tensors
    if backend != "reference":
        module = MultiScaleDecomposition(x.shape[2], len(low), low.shape[1]).to(x)
        bands: Tensor = torch.func.functional_call(module, {"low": low, "high": high}, (x,))
        return bands
    approximation = x.transpose(1, 2)
    outputs = [approximation]
    for level, taps in enumerate(zip(high, low, strict=True)):
        dilation = 2**level
        padded = F.pad(approximation, ((low.shape[1] - 1) * dilation, 0))
        weights = [tap.flip(0).T.unsqueeze(1) for tap in taps]
        detail, approximation = (F.conv1d(padded, w, groups=x.shape[2], dilation=dilation) for w in weights)
        outputs.append(detail)
    return torch.stack((*outputs, approximation), 1).permute(0, 3, 1, 2)


def _check(name: str, operator: Operator, tensors: list[Tensor], device: torch.device) -> Check:
    wide, narrow = ([x.to(device, dtype).requires_grad_() for x in tensors] for dtype in (torch.float64, torch.float32))
    kernels = _KERNELS.get(name)
    backend = choose("auto", device, torch.float32, kernels=kernels)
    expected, actual = _evaluate(operator, wide, "reference"), _evaluate(operator, narrow, "auto")
    tolerances = [OUTPUT, *([GRADIENT] * len(tensors))]
    error = max(relative_error(a, e) / t for a, e, t in zip(actual, expected, tolerances, strict=True))
    remedy = _remedy(backend, device, kernels)
    if error > 1:
        return Check(name, backend, remedy, error, None, None)
    own = milliseconds(lambda: _evaluate(operator, narrow, "auto"), device, runs=5)
    reference = milliseconds(lambda: _evaluate(operator, narrow, "reference"), device, runs=2)
    return Check(name, backend, remedy, error, own, reference / own)


def _evaluate(operator: Operator, tensors: list[Tensor], backend: Backend) -> list[Tensor]:
    y = operator(tensors, backend)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), tensors)]


def _remedy(backend: str, device: torch.device, kernels: Kernels | None) -> str:
    fastest = fastest_on(device)
    if backend == fastest or (fastest == "triton" and kernels is None):
        return ""
    missing = obstacle(fastest, device, torch.float32)
    if missing is not None:
        return f"not the fastest: backend {fastest!r} {missing}"
    if os.environ.get("MSSSM_BACKEND", "auto") == "auto":
        return ""  # the lines on the Triton kernels say why
    return f"not the fastest: MSSSM_BACKEND asks for {backend!r}; unset it for the fastest"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """Name of the processor, if the platform provides it."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _threads() -> str:
    if (policy := os.environ.get("OMP_WAIT_POLICY")) is not None:
        return f"OMP_WAIT_POLICY={policy}"
    if (spins := os.environ.get("GOMP_SPINCOUNT")) is not None:
        return f"GOMP_SPINCOUNT={spins}: idle ones soon sleep; in scripts, set it before torch loads"
    return "idle ones spin for milliseconds and slow other processes; GOMP_SPINCOUNT=10000 lets them sleep"


def _compiler() -> str:
    paths = [path for name in ("g++", "clang++") if (path := shutil.which(name))]
    return ", ".join(paths) or "none: g++ or clang++ builds the native kernels when msssm is installed"
