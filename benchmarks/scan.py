"""`multiscale_scan` and `selective_scan` beside the scans that others use, on M bands; M = 1 is `selective_scan`.

Everything runs Mamba's Euler discretisation, which the peers compute; "zoh" rows are msssm's default, which adds
an expm1 / A to each state step.
"""

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.compare import Case, Row, compare
from benchmarks.fresh import in_fresh_process
from benchmarks.installed import installed_scans
from benchmarks.memory import peak_mib
from msssm.scan import multiscale_scan, selective_scan
from msssm.scan.csrc import library as native

SHAPES = [(8, 1024, 128, 16), (8, 2048, 128, 16), (8, 1000, 128, 16), (1, 16384, 64, 16), (50, 1024, 256, 16)]
LEVELS = range(6)
OURS = {"msssm": "auto", "msssm, zoh": "auto", "pure torch": "torch", "reference": "reference"}
SLOW = {"sequential": peers.sequential_scan, "Blelloch": peers.blelloch_scan}
COMPILED = "associative_scan"
QUADRATIC = {"sequential": "backward not timed: its time grows with L^2"}


def arguments(size: tuple[int, ...], bands: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """u, delta, A, B, C, mix as a freshly initialised layer would make them; size (B, L, D, N)."""
    batch, length, channels, states = size
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = [
        normal(batch, length, bands, channels),
        torch.rand(batch, length, bands, channels, generator=generator) * 0.1,
        -torch.arange(1.0, states + 1).repeat(bands, channels, 1),
        normal(batch, length, bands, states),
        normal(batch, length, bands, states),
        torch.ones(batch, length, bands) if bands == 1 else normal(batch, length, bands),
    ]
    return [x.to(device, dtype).requires_grad_() for x in tensors]


def prepare(bands: int, device: torch.device, method: str, size: tuple[int, ...], dtype: torch.dtype) -> Case:
    """One method at a size (B, L, D, N)."""
    tensors = arguments(size, bands, device, dtype)
    if method not in OURS:
        scan = {**SLOW, COMPILED: peers.associative_scan, **installed_scans(device)}[method]
        return Case(lambda: scan(*tensors), tensors if bands > 1 else tensors[:5])
    backend, discretization = OURS[method], "zoh" if "zoh" in method else "euler"
    if bands > 1:
        return Case(
            lambda: multiscale_scan(*tensors, discretization=discretization, backend=backend),  # type: ignore
            tensors,
        )

    def single() -> Tensor:
        u, delta, A, B, C = (x.squeeze(0) if x.ndim == 3 else x.squeeze(2) for x in tensors[:5])
        return selective_scan(u, delta, A, B, C, discretization=discretization, backend=backend)  # type: ignore

    return Case(single, tensors[:5])


class Prepared:
    """`prepare` for some bands on a device; picklable, so that a fresh process can measure it."""

    def __init__(self, bands: int, device: torch.device) -> None:
        self.bands, self.device = bands, device

    def __call__(self, method: str, size: tuple[int, ...], dtype: torch.dtype) -> Case:
        return prepare(self.bands, self.device, method, size, dtype)


def run(device: torch.device, quick: bool) -> list[Row]:
    """The grid: one band and S + 2 bands for S = 0..5 on the first shape, one and five bands on the others."""
    rows = []
    for shape in SHAPES[:1] if quick else SHAPES:
        every = shape == SHAPES[0] and not quick
        for bands in (1, *(level + 2 for level in LEVELS)) if every else (1, 5):
            rows += cell(shape, bands, device, quick)
    return rows


def cell(shape: tuple[int, ...], bands: int, device: torch.device, quick: bool) -> list[Row]:
    """All methods that fit, on one shape and number of bands."""
    first, largest = shape == SHAPES[0], shape == SHAPES[-1]
    notes = dict(QUADRATIC)
    methods = ["msssm", *installed_scans(device)]
    # The slow ones stay within ten minutes: on the largest shape on one band only.
    if bands == 1 or not largest:
        methods += ["pure torch", *SLOW]
    if bands == 1 and first and not quick:
        methods.append(COMPILED)  # half a minute to compile, for each shape
    kept, left_out = _fitting(methods, shape, bands, device)
    label = _label(shape, bands)
    small = (2, 67, *shape[2:])
    rows = compare("scan", label, Prepared(bands, device), kept, shape, small, device, forward_only=notes)
    zoh = Truth(bands, device)
    rows += compare("scan", label, zoh, ["msssm, zoh"], shape, small, device, truth="reference, zoh")
    rows += [Row("scan", label, method, note=reason) for method, reason in left_out.items()]
    batch, length, channels, states = shape
    elements = batch * length * bands * channels * states
    channels_wide, states_wide = batch * length * bands * channels, batch * length * bands * states
    forward = 4 * (2 * channels_wide + 2 * states_wide + batch * length * (channels + bands))
    both = 3 * forward
    for row in rows:
        row.elements, row.moved = elements, (forward, both)
        if row.times and first and row.method in ("msssm", "pure torch", "Blelloch") and (bands in (1, 5) or not quick):
            if row.method == "Blelloch" and bands > 5:
                continue
            row.memory_mib = peak_mib(Prepared(bands, device), row.method, shape, torch.float32, device=device)
    return rows


class Truth(Prepared):
    """Adds the reference under zero-order hold."""

    def __call__(self, method: str, size: tuple[int, ...], dtype: torch.dtype) -> Case:
        if method != "reference, zoh":
            return super().__call__(method, size, dtype)
        tensors = arguments(size, self.bands, self.device, dtype)
        leaves = tensors if self.bands > 1 else tensors[:5]
        return Case(lambda: multiscale_scan(*tensors, backend="reference"), leaves)  # type: ignore


def variants(device: torch.device) -> list[Row]:
    """The native library in each vector width that this processor runs, each in a process of its own."""
    capability = torch.backends.cpu.get_cpu_capability()
    names = native._VARIANTS.get(capability, ("baseline",)) if device.type == "cpu" else ()
    return [row for name in names for row in in_fresh_process(_variant, name)]


def _variant(name: str) -> list[Row]:
    native._VARIANTS = {torch.backends.cpu.get_cpu_capability(): (name,)}
    device, shape = torch.device("cpu"), SHAPES[0]
    rows = compare("variants", _label(shape, 1), Prepared(1, device), ["msssm"], shape, (2, 67, *shape[2:]), device)
    for row in rows:
        row.method = name
    return rows


def _fitting(
    methods: list[str], shape: tuple[int, ...], bands: int, device: torch.device
) -> tuple[list[str], dict[str, str]]:
    """Methods whose memory this machine has, and why the others are left out."""
    batch, length, channels, states = shape
    states_mib = 4 * batch * length * bands * channels * states / 2**20
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] / 2**20
    else:
        with open("/proc/meminfo") as lines:
            free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1024
    kept, left_out = [], {}
    for method in methods:
        needed = states_mib * (10 if method in (*SLOW, COMPILED) else 1)
        if needed < 0.8 * free:
            kept.append(method)
        else:
            left_out[method] = f"left out: needs about {needed:,.0f} MiB, {free:,.0f} are free"
    return kept, left_out


def _label(shape: tuple[int, ...], bands: int) -> str:
    return f"{shape}, {bands} band{'s' * (bands > 1)}"
