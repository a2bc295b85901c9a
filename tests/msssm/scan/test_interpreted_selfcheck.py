"""The Triton kernels, their check and the choice of a backend in Triton's interpreter: the CPU stands for a GPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from msssm.scan import dispatch, lti_scan, multiscale_scan, triton
from msssm.scan.triton import common, lti, selective, selfcheck, verdict
from msssm.scan.triton.verdict import KERNELS, Kernels
from tests.support import faulty_kernels as faulty
from tests.support.tolerances import STEP, assert_near

pytestmark = pytest.mark.interpreted
CPU = torch.device("cpu")
FAULTS: dict[str, tuple[str, faulty.Fault]] = {
    "output": ("y is off", faulty.wrong_output()),
    "state": ("the last state is off", faulty.wrong_state),
    "gradient": ("gradient of", faulty.wrong_gradient("u")),
    "gradient of the state": ("gradient of", faulty.wrong_gradient("initial_state")),
    "padding": ("y is off", faulty.output_in_padding),
    "padding read": ("is off", faulty.one_step_too_far),
    "unsteady": ("differs between two runs", faulty.unsteady()),
    "raises": ("ValueError: no such instruction", faulty.raising(ValueError("no such instruction"))),
    "memory": ("no memory is left", faulty.raising(torch.OutOfMemoryError("CUDA out of memory"))),
}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A fresh process of a user whose CPU is a GPU, on which Triton wins the race."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MSSSM_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "fastest_on", lambda device: "triton")
    monkeypatch.setattr(verdict, "_known", {})
    monkeypatch.setattr(common, "_selected", {})
    times = iter(range(1, 1000))
    monkeypatch.setattr(selfcheck, "milliseconds", lambda function, device, runs: float(next(times)))
    dispatch._warn_once.cache_clear()
    yield
    dispatch._warn_once.cache_clear()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = selfcheck.cases
    monkeypatch.setattr(
        selfcheck, "cases", lambda kernels: [c._replace(shape=(2, 3, 1, 2, 2, 1)) for c in cases(kernels)[::3]]
    )
    monkeypatch.setattr(selfcheck, "race", lambda kernels: cases(kernels)[-1]._replace(shape=(1, 2, 1, 1, 1, 1)))


def given(kernels: Kernels) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    u, mix = torch.randn(1, 4, 2, 3, generator=g), torch.randn(1, 4, 2, generator=g)
    A = -torch.rand(2, 3, 2, generator=g) - 0.1
    if kernels == "lti":
        return [u, torch.full((2, 3), 0.3), A, A, mix]
    B = torch.randn(1, 4, 2, 2, generator=g)
    return [u, u.abs(), A, B, B, mix]


SCANS: dict[Kernels, Any] = {"selective": multiscale_scan, "lti": lti_scan}


def run(kernels: Kernels, backend: dispatch.Backend = "auto") -> torch.Tensor:
    y: torch.Tensor = SCANS[kernels](*given(kernels), backend=backend)
    return y


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the scans that ran, one for each call."""
    made: list[str] = []

    def counted(name: str, scan: faulty.Scan) -> faulty.Scan:
        def one_more(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
            made.append(name)
            return scan(*args)

        return one_more

    for name in faulty.SCANS.values():
        monkeypatch.setattr(triton, name, counted(name, getattr(triton, name)))
    return made


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.usefixtures("small")
def test_right_kernels_run_by_themselves_and_are_checked_once(
    kernels: Kernels, calls: list[str], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    first = run(kernels)
    checked = len(calls)
    assert checked > 1
    assert torch.equal(first, run(kernels, backend="triton"))
    monkeypatch.setattr(verdict, "_known", {})  # the next process
    assert torch.equal(first, run(kernels))
    assert len(calls) == checked + 2
    assert not recwarn.list
    monkeypatch.setenv("MSSSM_BACKEND", "torch")
    assert_near(first, run(kernels), STEP[torch.float32])
    assert len(calls) == checked + 2


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.usefixtures("small")
def test_a_faulty_kernel_is_never_used(kernels: Kernels, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, fault = FAULTS[name]
    scan = faulty.SCANS[kernels]
    monkeypatch.setattr(triton, scan, faulty.plant(kernels, getattr(triton, scan), fault))
    with pytest.warns(UserWarning, match=rf"the {kernels} kernels of backend 'triton' failed their check.*") as warned:
        result = run(kernels)
    assert expected in str(warned[0].message)
    assert len(warned) == 1
    assert ("report it with the output of `msssm doctor`" in str(warned[0].message)) == (name != "memory")

    def forbidden(*args: Any) -> None:
        raise AssertionError("a kernel that failed its check ran")

    monkeypatch.setattr(triton, scan, forbidden)
    assert torch.equal(result, run(kernels, backend="torch"))
    assert torch.equal(result, run(kernels))
    if name != "memory":
        monkeypatch.setattr(verdict, "_known", {})  # the next process
        assert torch.equal(result, run(kernels))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.usefixtures("small")
def test_kernels_that_are_slower_than_torch_are_not_used(
    kernels: Kernels, calls: list[str], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    times = iter(range(1000, 1, -1))
    monkeypatch.setattr(selfcheck, "milliseconds", lambda function, device, runs: float(next(times)))
    run(kernels)
    checked = len(calls)
    run(kernels)
    assert len(calls) == checked
    assert not recwarn.list


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.usefixtures("small")
def test_a_first_use_under_compile_checks_outside_the_graph(kernels: Kernels) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(SCANS[kernels], backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        y = compiled(*given(kernels))
    found = verdict.settle(kernels, CPU)
    assert found is not None
    assert found.fault is None
    assert torch.equal(y, run(kernels, backend="triton"))


@pytest.mark.slow
@pytest.mark.parametrize("kernels", KERNELS)
def test_the_check_covers_sequences_in_chunks(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the length that a GPU gets, with as many chunks as there are tiles: chunks that are not joined are found."""
    chains: list[None] = []

    def run_chain(*args: Any, **options: Any) -> None:
        chains.append(None)
        common.run_chain(*args, **options)

    for module in (selective, lti):
        monkeypatch.setattr(module, "run_chain", run_chain)
    monkeypatch.setattr(common, "warps_wanted", lambda device: 10**6)
    cases = selfcheck.cases(kernels)
    long = [case._replace(shape=(2, case.shape[1], 1, 2, 2, 1)) for case in cases[::3] if case.options]
    assert [case.shape[1] for case in long] == [261, 261]
    monkeypatch.setattr(selfcheck, "cases", lambda kernels: long)
    monkeypatch.setattr(selfcheck, "race", lambda kernels: cases[-1]._replace(shape=(1, 2, 1, 1, 1, 1)))
    assert selfcheck.examine(kernels, CPU).fault is None
    assert chains
    monkeypatch.setattr(common, "run_chain", lambda *args, **options: None)
    assert "is off by" in (selfcheck.examine(kernels, CPU).fault or "")
