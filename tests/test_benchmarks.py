"""The benchmarks: peers compute the same, a wrong operator gets no figure, and reports hold what they should."""

import ctypes
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import floors, model, peers, report, scan
from benchmarks.compare import BOTH, FORWARD, Case, Row, compare, errors, evaluate
from benchmarks.floors import Floors
from benchmarks.layer import SCAN, Decomposition, Layer, Scan, streaming
from benchmarks.memory import peak_mib
from benchmarks.timing import Timing, in_turn
from msssm import MultiScaleSSM
from msssm.scan import lti_scan, multiscale_scan
from tests.support.tolerances import FLOAT32, FLOAT64

CPU = torch.device("cpu")
SIZE = (2, 37, 3, 4)  # (B, L, D, N); 37 is no power of two


@pytest.mark.parametrize("length", [1, 2, 3, 31, 32, 37])
@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("peer", ["sequential", "Blelloch"])
def test_peers_equal_the_reference_in_float64(peer: str, bands: int, length: int) -> None:
    """Outputs and the gradient of every argument."""
    size = (2, length, 3, 4)
    prepare = scan.Prepared(bands, CPU)
    expected = evaluate(prepare("reference", size, torch.float64))
    assert max(errors(evaluate(prepare(peer, size, torch.float64)), expected)) < FLOAT64


def test_the_s4d_peer_equals_the_reference_in_float64() -> None:
    g = torch.Generator().manual_seed(0)
    u = torch.randn(2, 37, 3, 4, generator=g, dtype=torch.float64)
    delta = torch.rand(3, 4, generator=g, dtype=torch.float64) * 0.2 + 0.01
    A = torch.complex(-torch.rand(3, 4, 5, generator=g).double() - 0.1, torch.randn(3, 4, 5, generator=g).double())
    C = torch.randn(3, 4, 5, generator=g, dtype=torch.complex128)
    mix = torch.randn(2, 37, 3, generator=g, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (u, delta, A, C, mix)]
    expected = Case(lambda: lti_scan(*leaves, backend="reference"), leaves)
    actual = Case(lambda: peers.s4d_convolution(*leaves), leaves)
    assert max(errors(evaluate(actual), evaluate(expected))) < FLOAT64


def test_the_convolutional_peer_equals_the_decomposition() -> None:
    prepare = Decomposition(CPU)
    expected = evaluate(prepare("msssm", (2, 37, 5), torch.float64))
    assert max(errors(evaluate(prepare("depthwise conv1d", (2, 37, 5), torch.float64)), expected)) < FLOAT64


def test_every_method_starts_from_the_same_values() -> None:
    """Else a comparison would be between different problems."""
    single, double = (scan.arguments(SIZE, 2, CPU, dtype) for dtype in (torch.float32, torch.float64))
    assert all(torch.equal(a.double(), b) for a, b in zip(single, double, strict=True))


def _wrong(fault: str) -> scan.Prepared:
    """Prepares "msssm" with a fault."""

    class Faulty(scan.Prepared):
        def __call__(self, method: str, size: tuple[int, ...], dtype: torch.dtype) -> Case:
            case = super().__call__(method, size, dtype)
            if method != "msssm":
                return case
            if fault == "backward":
                hooked = [x.clone().detach().requires_grad_() for x in case.leaves]

                def run() -> Tensor:
                    u, *rest = hooked
                    y = multiscale_scan(u.detach() + 0.999 * (u - u.detach()), *rest, discretization="euler")
                    assert isinstance(y, Tensor)
                    return y

                return Case(run, hooked)
            if fault == "long":  # right at the small size only
                return Case(lambda: case.run() * (1 if size[1] < 20 else 1.001), case.leaves)
            return Case(lambda: case.run() * {"forward": 1.001, "nan": float("nan")}[fault], case.leaves)

    return Faulty(2, CPU)


@pytest.mark.parametrize("fault", ["forward", "backward", "nan", "long"])
def test_a_wrong_operator_is_refused(fault: str) -> None:
    methods = ["pure torch", "msssm"]
    right, wrong = compare("scan", "tiny", _wrong(fault), methods, SIZE, (1, 9, 3, 4), CPU, budget=0.001)
    assert set(right.times) == {FORWARD, BOTH}
    assert wrong.times == {}
    assert wrong.note.startswith("REFUSED")
    text = report.as_markdown([right, wrong], Floors(None, None, 1e9, "no compiler"), report.machine(CPU))
    [line] = [line for line in text.splitlines() if "| msssm |" in line]
    assert "REFUSED" in line
    assert line.split("|")[3:5] == ["  ", "  "], "no figure"


def test_a_correct_operator_is_not_refused() -> None:
    methods = ["msssm", "pure torch", "sequential", "Blelloch"]
    reasons = {"sequential": "slow"}
    prepare = scan.Prepared(2, CPU)
    rows = compare("scan", "tiny", prepare, methods, SIZE, (1, 9, 3, 4), CPU, forward_only=reasons, budget=0.001)
    assert [set(row.times) for row in rows] == [{FORWARD, BOTH}] * 2 + [{FORWARD}, {FORWARD, BOTH}]
    assert rows[2].note == "slow"


def test_in_turn_takes_the_best_and_counts_no_first_run() -> None:
    calls: list[str] = []
    times = in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, CPU, budget=0.0)  # type: ignore
    assert calls[:2] == ["a", "b"], "a first run of each"
    assert calls[2:] == ["a"] * 4 + ["b"] * 4, "one that does not count, then three"
    assert all(t.runs == 3 and t.best <= t.median for t in times.values())


ROWS = [
    Row("scan", "c", "msssm", 1000, (400, 900), {FORWARD: Timing(2.0, 3.0, 5), BOTH: Timing(6.0, 7.0, 5)}, 1e-7, 4.0),
    Row("scan", "c", "sequential", 1000, (400, 900), {FORWARD: Timing(50.0, 51.0, 1)}, 1e-7, None, "slow"),
    Row("scan", "c", "Blelloch", 1000, (400, 900), {FORWARD: Timing(20.0, 21.0, 1), BOTH: Timing(90.0, 91.0, 1)}),
    Row("length", "L = 64", "msssm", times={BOTH: Timing(1.0, 1.0, 3)}),
    Row("length", "L = 128", "msssm", times={BOTH: Timing(2.0, 2.0, 3)}),
    Row("layer", "(8, 1024, 128), S = 3", "msssm", times={BOTH: Timing(9.0, 9.0, 3)}, memory_mib=7.0),
    Row("layer", "(8, 1024, 128), S = 3", "its scan alone", times={BOTH: Timing(6.0, 6.0, 3)}),
]
FLOORS = Floors(1e6, 0.5e6, 1e6)


def test_ratios_are_against_the_peers_and_the_floors() -> None:
    forward = report.ratios(ROWS[0], ROWS, FORWARD, FLOORS)
    assert forward == pytest.approx(
        {"sequential": 25, "Blelloch": 10, "arithmetic floor": 2 / 1, "bandwidth floor": 2 / 0.4}
    )
    both = report.ratios(ROWS[0], ROWS, BOTH, FLOORS)
    assert both == pytest.approx({"Blelloch": 15, "arithmetic floor": 6 / 3, "bandwidth floor": 6 / 0.9})


def test_reports_hold_every_row(tmp_path: Path) -> None:
    folder = report.write(ROWS, FLOORS, CPU, tmp_path)
    content = json.loads((folder / "bench.json").read_text())
    assert [row["method"] for row in content["rows"]] == [row.method for row in ROWS]
    assert content["rows"][0]["times"][BOTH] == {"best": 6.0, "median": 7.0, "runs": 5}
    assert content["rows"][0]["ratios"][FORWARD]["Blelloch"] == pytest.approx(10)
    assert content["summary"] == {f"layer over its scan alone, (8, 1024, 128), S = 3, {BOTH}": 1.5}
    assert content["machine"]["threads"] == torch.get_num_threads()
    table = (folder / "bench.md").read_text()
    assert "| c | msssm | 2 (3) | 6 (7) | 25 / - | 10 / 15 |" in table
    assert "| slow |" in table
    assert "not quiet" not in table


def test_a_busy_machine_is_reported() -> None:
    drift = FLOORS.drift(Floors(1e6, 1e6, 1.1e6))
    assert drift == pytest.approx(1)
    assert FLOORS.best(Floors(2 * FLOORS[0], FLOORS[1] / 2, FLOORS[2])) == FLOORS._replace(
        forward_steps_per_s=2 * FLOORS[0]
    )
    assert "**The machine was not quiet**" in report.as_markdown(ROWS, FLOORS, report.machine(CPU), drift)


def test_the_floor_does_the_real_work() -> None:
    """Its loop computes the recurrence and all of its gradients, else it would be no floor."""
    library = floors.compile_floors()
    if library is None:
        pytest.skip("no C++ compiler")
    delta, drive, grad_y, A, B, C = given = floors.sample()
    steps, states = B.shape
    out = torch.empty(3 * steps + states + 2 * steps * states)
    library.floor_results(*floors.pointers(given), ctypes.c_void_p(out.data_ptr()))
    leaves = [x.double().requires_grad_() for x in (delta, drive, A, B, C)]
    delta, drive, A, B, C = leaves
    h, outputs = torch.zeros(states, dtype=torch.float64), []
    for t in range(steps):
        h = torch.exp(delta[t] * A) * h + drive[t] * B[t]
        outputs.append(h @ C[t])
    y = torch.stack(outputs)
    grad_delta, grad_drive, grad_A, grad_B, grad_C = torch.autograd.grad(y, leaves, grad_y.double())
    expected = [y.detach(), grad_drive, grad_delta, grad_A, grad_B.flatten(), grad_C.flatten()]
    actual = out.split([len(x) for x in expected])
    assert max(errors(list(actual), expected)) < FLOAT32


@pytest.mark.parametrize("levels", [0, 2])
def test_layer_and_its_scan_agree_with_the_reference(levels: int) -> None:
    small = (2, 19, 8)
    for prepare, method in ((Layer(levels, CPU), "msssm"), (Scan(levels, CPU), SCAN)):
        [row] = compare("layer", "tiny", prepare, [method], small, small, CPU, budget=0.001)
        assert set(row.times) == {FORWARD, BOTH}, row.note


@pytest.mark.slow
def test_model_agrees_with_the_reference() -> None:
    fast, slow = (evaluate(model.prepare(backend, CPU, torch.float64)[0]) for backend in ("torch", "reference"))
    assert max(errors(fast, slow)) < FLOAT64


def test_streaming_is_timed_only_if_it_equals_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FORWARD in streaming(MultiScaleSSM(8), "tiny", CPU).times
    step = MultiScaleSSM.step
    monkeypatch.setattr(MultiScaleSSM, "step", lambda self, x, state: step(self, 1.001 * x, state))
    refused = streaming(MultiScaleSSM(8), "tiny", CPU)
    assert refused.times == {}
    assert refused.note.startswith("REFUSED")


def test_memory_counts_what_a_method_allocates() -> None:
    """The tree keeps several tensors of the size of all states, the blocked scan none."""
    size = (2, 2048, 64, 16)
    states = 4 * 2 * 2048 * 64 * 16 / 2**20  # 16 MiB
    eager, blocked = (
        peak_mib(scan.Prepared(1, CPU), method, size, torch.float32, device=CPU)
        for method in ("Blelloch", "pure torch")
    )
    assert eager > 4 * states
    assert blocked < 2 * states
