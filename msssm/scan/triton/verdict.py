"""Verdicts on the Triton kernels of an operator on a device, from their check, kept on disk.

A verdict holds for one device name, compute capability, driver, torch, Triton and source of the kernels; when one of
these changes, the check runs again.
"""

import ctypes
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from filelock import FileLock

Kernels = Literal["selective", "lti"]
KERNELS: tuple[Kernels, ...] = ("selective", "lti")

# Seconds for which a process waits for another one's check, before it runs its own.
PATIENCE = 300


class Verdict(NamedTuple):
    """Result of the check of an operator's kernels on a device."""

    fault: str | None  # what is wrong with them
    configuration: int = 0  # the fastest of msssm.scan.triton.common.CONFIGURATIONS
    triton_ms: float = 0.0  # forward + backward of one real shape
    torch_ms: float = 0.0
    lasting: bool = True  # whether the next process may rely on it

    @property
    def backend(self) -> Literal["triton", "torch"]:
        """The backend to use: "triton" if the kernels are right and faster."""
        return "triton" if self.fault is None and self.triton_ms < self.torch_ms else "torch"

    @property
    def complaint(self) -> str:
        """The fault, and what to do."""
        advice = "report it with the output of `msssm doctor`" if self.lasting else "free some, and start again"
        return f"{self.fault}; {advice}"


# The check, selfcheck's: msssm.scan enters it, since it runs the operators, which stand above this file.
examine: Callable[[Kernels, torch.device], Verdict] | None = None

_known: dict[tuple[Kernels, torch.device], Verdict] = {}
_lock = threading.Lock()


def settle(kernels: Kernels, device: torch.device, *, renew: bool = False) -> Verdict | None:
    """Returns the verdict of this process, or from disk, or (always with `renew`) of a check that runs now.

    Returns None if there is none and no check can run: while a CUDA graph is captured, inside a backward, or in a
    forked process that cannot use CUDA.
    """
    if not renew and (known := _known.get((kernels, device))) is not None:
        return known
    if device.type == "cuda":
        if torch.cuda._is_in_bad_fork() or not torch.cuda.is_available():
            return None
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    with _lock:
        if not renew and (known := _known.get((kernels, device))) is not None:
            return known
        key = identity(kernels, device)
        path = file_of(key)
        verdict = None if renew else load(path, key)
        if verdict is None:
            if _busy(device):
                return None
            with _alone(path):
                verdict = (None if renew else load(path, key)) or _examine(kernels, device)
                if verdict.lasting:
                    save(path, key, verdict)
        if verdict.fault is None:
            from msssm.scan.triton.common import select

            select(kernels, device, verdict.configuration)
        _known[kernels, device] = verdict
        return verdict


def _examine(kernels: Kernels, device: torch.device) -> Verdict:
    assert examine is not None
    try:
        return examine(kernels, device)
    except torch.OutOfMemoryError:
        return Verdict("no memory is left on the device", lasting=False)


def _busy(device: torch.device) -> bool:
    """Whether a check would interfere with running work."""
    # The check's backward would wait for the thread that waits for the check.
    inside_backward = torch._C._current_graph_task_id() != -1
    return inside_backward or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())


def identity(kernels: Kernels, device: torch.device) -> dict[str, str]:
    """Everything on which a verdict depends."""
    name, capability, driver = "Triton's interpreter", "", ""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, capability = properties.name, f"{properties.major}.{properties.minor}"
        if torch.version.hip is not None:
            capability = getattr(properties, "gcnArchName", capability)
        driver = _driver()
    runtime = torch.version.hip or torch.version.cuda or "CPU"
    return {
        "kernels": kernels,
        "device": name,
        "capability": capability,
        "driver": driver,
        "torch": f"{torch.__version__}, {runtime}",
        "triton": _triton_version(),
        "source": _source(),
    }


def file_of(key: dict[str, str]) -> Path | None:
    """File of a key, in $XDG_CACHE_HOME/msssm or ~/.cache/msssm; None for a user without a home."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # The base directory specification ignores a relative path.
        root = root if root.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    digest = sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return root / "msssm" / f"{key['kernels']}-{digest[:16]}.json"


def load(path: Path | None, key: dict[str, str]) -> Verdict | None:
    """Reads a verdict; None if there is no file, or it is damaged or of another key."""
    if path is None:
        return None
    try:
        found = json.loads(path.read_bytes())
        if found["key"] != key:
            return None
        fault, configuration = found["fault"], found["configuration"]
        times = float(found["triton_ms"]), float(found["torch_ms"])
        well_formed = isinstance(configuration, int) and (fault is None or isinstance(fault, str))
        if not well_formed or (fault is None and not 0 <= configuration < _configurations()):
            return None
        return Verdict(fault, configuration, *times)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def save(path: Path | None, key: dict[str, str], verdict: Verdict) -> None:
    """Writes the file atomically; if it cannot be written, the verdict only holds for this process."""
    if path is None:
        return
    content = {"key": key} | verdict._asdict()
    del content["lasting"]
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(content, file, indent=1)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


@contextmanager
def _alone(path: Path | None) -> Iterator[None]:
    """Admits one process at a time, if the file system can lock: the others read the first one's result."""
    with ExitStack() as held:
        # A timeout is an OSError, too.
        with suppress(OSError, NotImplementedError):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(f"{path}.lock", timeout=PATIENCE))
        yield


def _configurations() -> int:
    from msssm.scan.triton.common import CONFIGURATIONS

    return len(CONFIGURATIONS)


@cache
def _source() -> str:
    """Digest of the kernels and their check."""
    here = Path(__file__).parent
    files = [*sorted(here.glob("*.py")), here.parent / "step_size.py"]
    digest = sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@cache
def _triton_version() -> str:
    try:
        import triton  # type: ignore[import-untyped, unused-ignore]

        return str(triton.__version__)
    except Exception as error:  # the check then says the same, and plain torch runs
        return f"unusable: {type(error).__name__}"


@cache
def _driver() -> str:
    """Version of the kernel module, else the driver's CUDA version; "" if neither is known."""
    module = "amdgpu" if torch.version.hip is not None else "nvidia"
    for path in (f"/sys/module/{module}/version", f"/proc/driver/{module}/version"):
        with suppress(OSError):
            return Path(path).read_text().strip()
    version = ctypes.c_int()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return str(version.value or "")
