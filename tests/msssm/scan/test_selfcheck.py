"""The check of the Triton kernels finds what is wrong. The reference in float32 stands for them here, whole or spoiled;
test_interpreted_selfcheck.py has the kernels themselves."""

import contextlib
import platform
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from msssm.scan import triton
from msssm.scan.triton import selfcheck
from msssm.scan.triton.selfcheck import Case, examine
from msssm.scan.triton.verdict import KERNELS, Kernels
from tests.support import faulty_kernels as faulty

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="Triton exists for Linux alone")
CPU = torch.device("cpu")

# Result that is wrong, and fault.
FAULTS: dict[str, tuple[str, faulty.Fault]] = {
    "output": ("y is off", faulty.wrong_output()),
    "state": ("the last state is off", faulty.wrong_state),
    "padding written": ("y is off", faulty.output_in_padding),
    "padding read": ("is off", faulty.one_step_too_far),
    "state ignored": ("y is off", faulty.without("initial_state")),
    "skip ignored": ("y is off", faulty.without("D")),
    "unsteady": ("the last state differs between two runs", faulty.unsteady()),
    "bfloat16": (", bfloat16,", faulty.wrong_output(lambda given: given["u"].dtype == torch.bfloat16, by=0.03)),
    "float16": (", float16,", faulty.wrong_output(lambda given: given["u"].dtype == torch.float16, by=0.003)),
    "mixed": ("float32 with bfloat16", faulty.wrong_output(lambda given: given["u"].dtype != given["mix"].dtype)),
    "long": ("L = 261", faulty.wrong_output(lambda given: given["u"].shape[1] > 200)),
    "inference": ("y without gradients is off", faulty.wrong_output(lambda given: not torch.is_grad_enabled())),
    "raises": ("RuntimeError: PTX", faulty.raising(RuntimeError("PTX assembly aborted\nmore of it"))),
}
OF_ONE = {
    "selective": {
        "euler": ("euler", faulty.wrong_output(lambda given: given["discretization"] == "euler")),
        "bias ignored": ("is off", faulty.without("delta_bias")),
    },
    "lti": {"complex": ("complex", faulty.wrong_output(lambda given: given["decay"].is_complex()))},
}
GRADIENTS = [(kernels, name) for kernels in KERNELS for name in faulty.DIFFERENTIABLE[kernels]]


@pytest.fixture(autouse=True)
def small_race(monkeypatch: pytest.MonkeyPatch) -> None:
    from msssm.scan.triton import common

    monkeypatch.setattr(common, "_selected", {})
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # lets "triton" run on a CPU
    monkeypatch.setattr(
        selfcheck,
        "race",
        lambda kernels: Case((2, 9, 2, 3, 2, 1), selfcheck.KINDS[kernels][0], *[torch.float32] * 2, False),
    )


@pytest.fixture
def small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = selfcheck.cases
    monkeypatch.setattr(
        selfcheck, "cases", lambda kernels: [c._replace(shape=(2, 9, 2, 6, 3, c.shape[5])) for c in cases(kernels)]
    )


def install(monkeypatch: pytest.MonkeyPatch, kernels: Kernels, fault: faulty.Fault | None = None) -> None:
    scan = faulty.RIGHT[kernels]
    spoiled = scan if fault is None else faulty.plant(kernels, scan, fault)
    monkeypatch.setattr(triton, faulty.SCANS[kernels], spoiled)


@pytest.mark.parametrize("kernels", KERNELS)
def test_right_kernels_are_right_and_timed(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    from msssm.scan.triton import common

    install(monkeypatch, kernels)
    verdict = examine(kernels, CPU)
    assert verdict.fault is None
    assert 0 <= verdict.configuration < len(common.CONFIGURATIONS)
    assert min(verdict.triton_ms, verdict.torch_ms) > 0


@pytest.mark.parametrize(
    ("kernels", "name"), [(k, name) for k in KERNELS for name in (*FAULTS, *OF_ONE[k]) if name != "long"]
)
@pytest.mark.usefixtures("small_cases")
def test_a_fault_is_found_and_named(kernels: Kernels, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, fault = (FAULTS | OF_ONE[kernels])[name]
    install(monkeypatch, kernels, fault)
    verdict = examine(kernels, CPU)
    assert verdict.fault is not None
    assert expected in verdict.fault
    assert "\n" not in verdict.fault
    assert verdict.backend == "torch"


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_fault_of_long_sequences_alone_is_found(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, fault = FAULTS["long"]
    install(monkeypatch, kernels, fault)
    assert expected in (examine(kernels, CPU).fault or "")


@pytest.mark.parametrize(("kernels", "name"), GRADIENTS)
@pytest.mark.usefixtures("small_cases")
def test_a_wrong_gradient_of_any_argument_is_found(
    kernels: Kernels, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, kernels, faulty.wrong_gradient(name))
    verdict = examine(kernels, CPU)
    assert "gradient of" in (verdict.fault or "")
    assert verdict.backend == "torch"


def test_want_of_memory_is_no_verdict_on_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "lti", faulty.raising(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        examine("lti", CPU)


@contextlib.contextmanager
def default(set_default: Any, value: Any, before: Any) -> Iterator[None]:
    set_default(value)
    try:
        yield
    finally:
        set_default(before)


STATES: dict[str, Any] = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default(torch.set_default_dtype, torch.float64, torch.float32),
    "float16": lambda: default(torch.set_default_dtype, torch.float16, torch.float32),
    "meta": lambda: default(torch.set_default_device, "meta", None),
    "deterministic": lambda: default(torch.use_deterministic_algorithms, True, False),
    "vmap": lambda: contextlib.nullcontext(),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.usefixtures("small_cases")
def test_the_check_neither_sees_nor_changes_the_state_of_its_caller(
    kernels: Kernels, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, kernels)
    random = torch.random.get_rng_state()
    with STATES[state]():
        if state == "vmap":
            found = []
            torch.func.vmap(lambda x: (found.append(examine(kernels, CPU)), x)[1])(torch.zeros(3))
            [verdict] = found
        else:
            verdict = examine(kernels, CPU)
            assert torch.is_inference_mode_enabled() == (state == "inference")
            assert torch.is_grad_enabled() == (state not in ("inference", "no_grad"))
            assert torch.is_autocast_enabled("cpu") == (state == "autocast")
    assert verdict.fault is None
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.usefixtures("small_cases")
def test_the_fastest_configuration_that_is_right_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four, the first is slow, the second wrong, the third raises; all but the chosen one are tried once."""
    from msssm.scan.triton import common

    monkeypatch.setattr(common, "CONFIGURATIONS", tuple(common.Configuration(channels=n) for n in (1, 2, 3, 4)))
    times = {1: 5.0, 4: 3.0}

    def scan(inner: faulty.Scan, given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        y, state = inner(**given)
        channels = common.configuration("lti", CPU).channels
        if channels == 3:
            raise RuntimeError("out of resource: shared memory")
        return y * (1.5 if channels == 2 else 1), state

    def milliseconds(function: Any, device: torch.device, runs: int) -> float:
        return times[common.configuration("lti", CPU).channels]

    install(monkeypatch, "lti", scan)
    monkeypatch.setattr(selfcheck, "milliseconds", milliseconds)
    verdict = examine("lti", CPU)
    assert (verdict.fault, verdict.configuration, verdict.triton_ms) == (None, 3, 3.0)
    assert common.configuration("lti", CPU).channels == 4
    assert common.configuration("selective", CPU).channels == 1
