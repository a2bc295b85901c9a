"""`MultiScaleSSM` as a whole: beside its own scan, against the number of levels, against the length, and streaming."""

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.compare import FORWARD, Case, Row, compare
from benchmarks.memory import peak_mib
from benchmarks.timing import in_turn
from msssm import MultiScaleSSM
from msssm.baselines import MultiresConv
from msssm.decomposition import MultiScaleDecomposition
from msssm.scan import Backend, multiscale_scan

SIZE = (8, 1024, 128)
LENGTHS = (512, 1024, 2048, 4096, 8192)
BACKENDS: dict[str, Backend] = {"msssm": "auto", "pure torch": "torch", "reference": "reference"}
SCAN = "its scan alone"
CONVOLUTION = "depthwise conv1d"
BANDS = "bands in memory"


class Layer:
    """`MultiScaleSSM` of S levels; "its scan alone" is `multiscale_scan` on tensors of the same sizes."""

    def __init__(self, levels: int, device: torch.device) -> None:
        self.levels, self.device = levels, device

    def __call__(self, method: str, size: tuple[int, ...], dtype: torch.dtype) -> Case:
        batch, length, channels = size
        torch.manual_seed(0)
        layer = MultiScaleSSM(channels, self.levels, backend=BACKENDS.get(method, "auto")).to(self.device, dtype)
        x = torch.randn(batch, length, channels, dtype=torch.float64).to(self.device, dtype).requires_grad_()
        # Without levels the filters are empty, and no gradient reaches them.
        return Case(lambda: layer(x), [x, *(p for p in layer.parameters() if p.numel())])


class Scan:
    """`multiscale_scan` with the sizes and options of `Layer`."""

    def __init__(self, levels: int, device: torch.device) -> None:
        self.levels, self.device = levels, device

    def __call__(self, method: str, size: tuple[int, ...], dtype: torch.dtype) -> Case:
        batch, length, channels = size
        bands, states = self.levels + 2, 16
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        leaves = [
            normal(batch, length, bands, channels),
            normal(batch, length, bands, channels),
            -torch.arange(1.0, states + 1).double().repeat(bands, channels, 1),
            normal(batch, length, bands, states),
            normal(batch, length, bands, states),
            normal(batch, length, bands, 1),
            normal(bands, channels) - 4,
        ]
        leaves = [x.to(self.device, dtype).requires_grad_() for x in leaves]
        backend: Backend = "reference" if method == "reference" else "auto"
        return Case(lambda: multiscale_scan(*leaves[:6], delta_bias=leaves[6], backend=backend), leaves)  # type: ignore


class Decomposition:
    """`MultiScaleDecomposition` of three levels and four taps."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, method: str, size: tuple[int, ...], dtype: torch.dtype) -> Case:
        torch.manual_seed(0)
        module = MultiScaleDecomposition(size[2]).to(self.device, dtype)
        x = torch.randn(*size, dtype=torch.float64).to(self.device, dtype).requires_grad_()
        leaves = [x, module.low, module.high]
        if method == "msssm":
            return Case(lambda: module(x), leaves)
        return Case(lambda: peers.convolutional_decomposition(*leaves), leaves)


class Multires:
    """`MultiresConv` of ten levels and two taps: the weighted sum of the bands of a deep decomposition."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, method: str, size: tuple[int, ...], dtype: torch.dtype) -> Case:
        torch.manual_seed(0)
        layer = MultiresConv(size[2], levels=10, kernel_size=2).to(self.device, dtype)
        x = torch.randn(*size, dtype=torch.float64).to(self.device, dtype).requires_grad_()
        filters, weights = layer.decomposition, layer.mixer.weight
        leaves = [x, filters.low, filters.high, weights]
        if method == "msssm":
            return Case(lambda: layer(x), leaves)

        def from_bands() -> Tensor:
            shared = (taps.expand(10, -1, -1) for taps in (filters.low, filters.high))
            bands = filters(x) if method == BANDS else peers.convolutional_decomposition(x, *shared)
            return (bands * weights).sum(2)

        return Case(from_bands, leaves)


def run(device: torch.device, quick: bool) -> list[Row]:
    """Layer against its scan and the pure-torch fallback, two decompositions, the number of levels, the length."""
    small = (2, 67, SIZE[2])
    rows = []
    for levels in (3,) if quick else range(6):
        case = f"{SIZE}, S = {levels}"
        methods = ["msssm", "pure torch"] if levels == 3 else ["msssm"]
        layer = compare("layer", case, Layer(levels, device), methods, SIZE, small, device)
        for row in layer:
            if row.times:
                row.memory_mib = peak_mib(Layer(levels, device), row.method, SIZE, torch.float32, device=device)
        scan = compare("layer", case, Scan(levels, device), [SCAN], SIZE, small, device)
        rows += layer + scan
    methods = ["msssm", CONVOLUTION]
    rows += compare("decomposition", str(SIZE), Decomposition(device), methods, SIZE, small, device, truth=CONVOLUTION)
    methods = ["msssm", BANDS, CONVOLUTION]
    rows += compare("MultiresNet", str(SIZE), Multires(device), methods, SIZE, small, device, truth=CONVOLUTION)
    for length in () if quick else LENGTHS:
        size = (2, length, SIZE[2])
        rows += compare("length", f"L = {length}", Layer(3, device), ["msssm", "pure torch"], size, small, device)
    return [*rows, streaming(MultiScaleSSM(SIZE[2]), f"layer, D = {SIZE[2]}, one row", device)]


def streaming(module: nn.Module, case: str, device: torch.device) -> Row:
    """Latency of one `step` of a sequence layer, after the steps have been seen to equal the whole run."""
    module = module.to(device).eval()
    channels: int = module.d_model  # type: ignore[assignment]
    x = torch.randn(1, 32, channels, generator=torch.Generator().manual_seed(0)).to(device)
    row = Row("streaming", case, "msssm, one step")
    with torch.no_grad():
        state, steps = module.initial_state(1), []  # type: ignore[operator]
        for t in range(x.shape[1]):
            y, state = module.step(x[:, t], state)  # type: ignore[operator]
            steps.append(y)
        whole = module(x)
        row.error = ((torch.stack(steps, 1) - whole).abs().max() / whole.abs().max()).item()
        if not row.error < 1e-4:
            row.note = f"REFUSED: steps differ from the whole run by {row.error:.1e}"
            return row
        row.times = in_turn({FORWARD: lambda: module.step(x[:, 0], state)}, device)  # type: ignore[operator]
    return row
