"""The report of `msssm doctor`: what is installed, which backend runs each operator, and how to get a faster one."""

import argparse
import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from msssm.minimal import ms_ssm
from msssm.multiscale import MultiScaleSSM
from msssm.scan.csrc.library import library
from msssm.scan.dispatch import choose, fastest_on, obstacle
from msssm.scan.selective.check import fault

# The operators, with the check of their Triton kernels, where they have some.
OPERATORS = {"selective scan (S6)": fault, "time-invariant scan (S4)": None, "decomposition": None}
# Largest error of a float32 output against the equations in float64, relative to the largest value.
TOLERANCE = 2e-5


def main(args: list[str]) -> None:
    """Prints the report.

    Raises:
        SystemExit: a layer disagrees with the equations (code 1).
    """
    parser = argparse.ArgumentParser(
        prog="msssm doctor",
        description="Says what is installed, which backend runs each operator here, how to get a faster one, and "
        "whether layers compute the paper's equations. Ends with code 1 if one does not.",
        allow_abbrev=False,
    )
    parser.parse_args(args)
    for line in environment():
        print(line)
    wrong = False
    for device in devices():
        print(f"\non {device}, in float32:")
        for line in backends(device):
            print(line, flush=True)
        for ssm in ("s6", "s4"):
            error = disagreement(ssm, device)
            right = error < TOLERANCE
            wrong |= not right
            verdict = "agrees with" if right else "is WRONG, please report it: it differs from"
            print(f"  MultiScaleSSM({ssm}) {verdict} the paper's equations (error {error:.0e})")
    if wrong:
        raise SystemExit(1)


def environment() -> Iterator[str]:
    """Lines on versions, hardware, compiler and native library."""
    packages = {name: _version(name) for name in ("msssm", "torch", "triton", "lightning")}
    yield f"versions    python {platform.python_version()}, " + ", ".join(f"{n} {v}" for n, v in packages.items())
    capability = torch.backends.cpu.get_cpu_capability()
    yield f"processor   {processor()}, {capability}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield f"GPU         {', '.join(gpus) or 'none that torch can use'}"
    compilers = [path for name in ("g++", "clang++") if (path := shutil.which(name))]
    yield f"compiler    {', '.join(compilers) or 'none; the native kernels need g++ or clang++ at installation'}"
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


def backends(device: torch.device) -> Iterator[str]:
    """Lines on the backend of each operator, and on how to get a faster one."""
    fastest = fastest_on(device)
    for operator, check in OPERATORS.items():
        backend = choose("auto", device, torch.float32, check=check)
        missing = obstacle(fastest, device, torch.float32)
        if backend == fastest or (fastest == "triton" and check is None):
            advice = "the fastest there is"
        elif missing is None and os.environ.get("MSSSM_BACKEND", "auto") != "auto":
            advice = f"backend {fastest!r} would be faster: unset MSSSM_BACKEND"
        else:
            missing = check(device) if missing is None and check is not None else missing
            advice = f"backend {fastest!r} would be faster, but {missing}"
        yield f"  {operator:<26}{backend:<10}{advice}"


def disagreement(ssm: str, device: torch.device) -> float:
    """Error of a layer in float32 against `msssm.minimal` in float64, relative to the largest value."""
    layer = MultiScaleSSM(32, ssm=ssm).double()  # type: ignore[arg-type]
    x = torch.randn(2, 100, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = ms_ssm(x, layer.state_dict(), ssm=ssm)
        actual = layer.to(device, torch.float32)(x.to(device, torch.float32)).to(expected)
    return ((actual - expected).abs().max() / expected.abs().max()).item()


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
