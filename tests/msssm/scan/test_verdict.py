"""Where verdicts on the Triton kernels are kept, what invalidates them, and when no check may run."""

import json
import multiprocessing
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from msssm.scan import dispatch
from msssm.scan.dispatch import choose
from msssm.scan.triton import verdict
from msssm.scan.triton.verdict import Verdict, file_of, identity, load, save, settle

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="Triton exists for Linux alone")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
RIGHT = Verdict(None, 0, 1.0, 2.0)


class Fresh:
    """Checks that ran, and the start of the next process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.checks: list[tuple[str, torch.device]] = []
        self.finding = RIGHT
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(verdict, "_examine", self.examine)
        self.restart()

    def examine(self, kernels: verdict.Kernels, device: torch.device) -> Verdict:
        self.checks.append((kernels, device))
        return self.finding

    def restart(self) -> None:
        from msssm.scan.triton import common

        self.monkeypatch.setattr(verdict, "_known", {})
        self.monkeypatch.setattr(common, "_selected", {})
        dispatch._warn_once.cache_clear()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fresh:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MSSSM_BACKEND", raising=False)
    return Fresh(monkeypatch)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What torch says of a GPU that is not there."""
    properties = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, gcnArchName="NVIDIA H100")
    answers: dict[str, Callable[..., Any]] = {
        "_is_in_bad_fork": lambda: False,
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "is_current_stream_capturing": lambda: False,
        "get_device_properties": lambda device: properties,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(verdict, "_driver", lambda: "550.54")
    return properties


def test_one_check_serves_every_later_process(fresh: Fresh) -> None:
    assert settle("lti", CPU) == RIGHT
    assert settle("lti", CPU) == RIGHT
    fresh.restart()
    assert settle("lti", CPU) == RIGHT
    assert fresh.checks == [("lti", CPU)]
    settle("selective", CPU)
    assert fresh.checks == [("lti", CPU), ("selective", CPU)]


def test_renewal_runs_the_check_and_replaces_the_file(fresh: Fresh) -> None:
    settle("lti", CPU)
    fresh.finding = Verdict("y is off", 0)
    assert settle("lti", CPU, renew=True) == fresh.finding
    fresh.restart()
    assert settle("lti", CPU) == fresh.finding
    assert len(fresh.checks) == 2


def test_want_of_memory_is_not_remembered(fresh: Fresh) -> None:
    fresh.finding = Verdict("no memory is left on the device", lasting=False)
    assert settle("lti", CPU) == settle("lti", CPU) == fresh.finding
    assert len(fresh.checks) == 1
    fresh.restart()
    fresh.finding = RIGHT
    assert settle("lti", CPU) == RIGHT


def test_triton_runs_where_it_is_right_and_faster() -> None:
    assert RIGHT.backend == "triton"
    assert RIGHT._replace(torch_ms=0.9).backend == "torch"
    assert RIGHT._replace(fault="y is off").backend == "torch"


def changes() -> dict[str, Callable[[pytest.MonkeyPatch, SimpleNamespace], None]]:
    return {
        "device": lambda m, gpu: m.setattr(gpu, "name", "NVIDIA A100"),
        "capability": lambda m, gpu: m.setattr(gpu, "minor", 1),
        "driver": lambda m, gpu: m.setattr(verdict, "_driver", lambda: "551.00"),
        "torch": lambda m, gpu: m.setattr(torch, "__version__", "9.9"),
        "triton": lambda m, gpu: m.setattr(verdict, "_triton_version", lambda: "9.9"),
        "source": lambda m, gpu: m.setattr(verdict, "_source", lambda: "another"),
    }


@pytest.mark.parametrize("changed", changes())
def test_a_change_of_any_key_runs_the_check_again(
    changed: str, fresh: Fresh, a_gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity("lti", GPU)
    settle("lti", GPU)
    with monkeypatch.context() as patched:
        changes()[changed](patched, a_gpu)
        after = identity("lti", GPU)
        assert {name for name in before if before[name] != after[name]} == {changed}
        fresh.restart()
        settle("lti", GPU)
        assert len(fresh.checks) == 2
    fresh.restart()
    settle("lti", GPU)  # both are kept
    assert len(fresh.checks) == 2


def test_every_key_is_among_the_changes_tried(a_gpu: SimpleNamespace) -> None:
    assert identity("lti", GPU).keys() == {"kernels", *changes()}


def test_two_gpus_of_one_kind_share_a_verdict_and_others_do_not(
    fresh: Fresh, a_gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle("lti", torch.device("cuda", 0))
    settle("lti", torch.device("cuda", 1))
    settle("lti", torch.device("cuda"))
    assert len(fresh.checks) == 1
    monkeypatch.setattr(a_gpu, "name", "NVIDIA T4")
    settle("lti", torch.device("cuda", 2))
    assert fresh.checks == [("lti", GPU), ("lti", torch.device("cuda", 2))]


def test_an_amd_device_is_named_by_its_architecture(a_gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")
    monkeypatch.setattr(a_gpu, "gcnArchName", "gfx942:sramecc+:xnack-")
    assert identity("lti", GPU)["capability"] == "gfx942:sramecc+:xnack-"
    assert identity("lti", GPU)["torch"].endswith(", 6.2")


def test_the_driver_is_its_module_s_version_and_empty_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: Any) -> Any:
        raise OSError

    monkeypatch.setattr(verdict.ctypes, "CDLL", absent)
    for read, expected in ((lambda path: "550.54\n", "550.54"), (absent, "")):
        monkeypatch.setattr(Path, "read_text", read)
        assert verdict._driver.__wrapped__() == expected


def test_a_byte_of_any_kernel_changes_the_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "scan"
    shutil.copytree(Path(verdict.__file__).parents[1], copy)
    monkeypatch.setattr(verdict, "__file__", str(copy / "triton/verdict.py"))

    def digest() -> str:
        verdict._source.cache_clear()
        return verdict._source()

    try:
        found = {digest()}
        files = [*(copy / "triton").glob("*.py"), copy / "step_size.py"]
        assert len(files) > 5
        for file in files:
            file.write_bytes(file.read_bytes() + b" ")
            found.add(digest())
        assert len(found) == len(files) + 1
    finally:
        verdict._source.cache_clear()


GOOD: dict[str, Any] = {"fault": None, "configuration": 0, "triton_ms": 1.0, "torch_ms": 2.0}
DAMAGES: dict[str, Any] = {
    "empty": b"",
    "cut off": b'{"key": {"ker',
    "binary": b"\xff\xfe\x00",
    "another thing": b"[1, 2]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "of another key": {"key": {"device": "another"}},
    "without times": {"triton_ms": None},
    "no such configuration": {"configuration": 99},
    "negative configuration": {"configuration": -1},
    "a word for a configuration": {"configuration": "x"},
    "a number for a fault": {"fault": 3},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_file_is_no_verdict(damage: str, fresh: Fresh) -> None:
    key = identity("lti", CPU)
    path = file_of(key)
    assert path is not None
    path.parent.mkdir(parents=True)
    content = DAMAGES[damage]
    path.write_bytes(content if isinstance(content, bytes) else json.dumps({"key": key} | GOOD | content).encode())
    assert load(path, key) is None
    assert settle("lti", CPU) == RIGHT
    assert len(fresh.checks) == 1
    assert load(path, key) == RIGHT  # and the file is mended
    path.write_text(json.dumps({"key": key} | GOOD))
    assert load(path, key) == RIGHT


def unwritable() -> dict[str, Callable[[pytest.MonkeyPatch, Path], None]]:
    def no_home(m: pytest.MonkeyPatch, tmp: Path) -> None:
        def home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        m.delenv("XDG_CACHE_HOME")
        m.setattr(Path, "home", home)

    def full(m: pytest.MonkeyPatch, tmp: Path) -> None:
        def replace(*args: Any) -> None:
            raise OSError(28, "No space left on device")

        m.setattr(os, "replace", replace)

    def a_file(m: pytest.MonkeyPatch, tmp: Path) -> None:
        (tmp / "file").touch()
        m.setenv("XDG_CACHE_HOME", str(tmp / "file"))

    def in_the_way(m: pytest.MonkeyPatch, tmp: Path) -> None:
        path = file_of(identity("lti", CPU))
        assert path is not None
        path.mkdir(parents=True)

    return {
        "no home": no_home,
        "read-only": lambda m, tmp: m.setenv("XDG_CACHE_HOME", "/proc/msssm"),
        "a file for a folder": a_file,
        "a folder for the file": in_the_way,
        "full disk": full,
    }


@pytest.mark.parametrize("where", unwritable())
def test_where_nothing_can_be_written_the_verdict_is_the_process_s_own(
    where: str, fresh: Fresh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    unwritable()[where](monkeypatch, tmp_path)
    assert settle("lti", CPU) == settle("lti", CPU) == RIGHT
    assert len(fresh.checks) == 1
    fresh.restart()
    assert settle("lti", CPU) == RIGHT
    assert len(fresh.checks) == 2
    assert not recwarn.list
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("home", ["", "relative"])
def test_without_a_cache_folder_the_file_lies_in_the_home(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", "/home/someone")
    path = file_of({"kernels": "lti"})
    assert path is not None
    assert path.parent == Path("/home/someone/.cache/msssm")


def _settle_slowly(log: Path, results: Any) -> None:
    def examine(kernels: verdict.Kernels, device: torch.device) -> Verdict:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return RIGHT._replace(triton_ms=1 / os.getpid())

    verdict._examine = examine
    results.put(settle("lti", CPU))


def test_of_several_processes_one_checks_and_the_others_read(fresh: Fresh, tmp_path: Path) -> None:
    settle("selective", CPU)  # Triton is loaded before the fork
    forked = multiprocessing.get_context("fork")
    results = forked.Queue()
    processes = [forked.Process(target=_settle_slowly, args=(tmp_path / "log", results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert len(set(found)) == 1


def _save_often(path: Path, key: dict[str, str], mine: Verdict) -> None:
    for _ in range(200):
        save(path, key, mine)


def test_writers_at_the_same_time_leave_a_whole_file(tmp_path: Path) -> None:
    """Where no lock is to be had; a reader sees one verdict or the other at any time."""
    path, key = tmp_path / "msssm" / "lti-0.json", {"kernels": "lti"}
    verdicts = [Verdict("x" * 5000, 0, 1.0, 1.0), RIGHT]
    save(path, key, RIGHT)
    forked = multiprocessing.get_context("fork")
    writers = [forked.Process(target=_save_often, args=(path, key, mine)) for mine in verdicts]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert load(path, key) in verdicts
    for writer in writers:
        writer.join()
    assert [file.name for file in path.parent.iterdir()] == ["lti-0.json"]


def test_no_check_while_a_graph_is_captured(
    fresh: Fresh, a_gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as capturing:
        capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.warns(
            UserWarning, match=r"lti kernels .* are not checked yet on cuda:0.*run the model once before"
        ):
            assert choose("auto", GPU, torch.float32, kernels="lti") == "torch"
        assert not fresh.checks
    assert choose("auto", GPU, torch.float32, kernels="lti") == "triton"
    fresh.restart()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose("auto", GPU, torch.float32, kernels="lti") == "triton"  # from the file
    assert len(fresh.checks) == 1


def test_a_forked_process_does_not_touch_the_gpu(
    fresh: Fresh, a_gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: Any) -> None:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.")

    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    for name in ("is_available", "current_device", "get_device_properties", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, forbidden)
    assert settle("lti", GPU) is None
    assert not fresh.checks


def test_no_check_inside_a_backward(fresh: Fresh) -> None:
    """The check's backward would be queued behind the one that waits for it."""

    class Inside(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            found.append(settle("lti", CPU))
            return grad

    found: list[Verdict | None] = []
    Inside.apply(torch.ones(2, requires_grad=True)).sum().backward()
    assert found == [None]
    assert settle("lti", CPU) == RIGHT


def test_no_triton_is_no_check(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.triton, "available", lambda: False)
    with pytest.warns(UserWarning, match="'triton' is not installed: pip install triton"):
        assert choose("auto", GPU, torch.float32, kernels="lti") == "torch"
    assert not fresh.checks


@pytest.mark.parametrize("backend", ["torch", "triton", "reference"])
def test_the_environment_decides_without_a_check(
    backend: str, fresh: Fresh, a_gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSSSM_BACKEND", backend)
    assert choose("auto", GPU, torch.float32, kernels="lti") == backend
    assert not fresh.checks


def test_float64_and_operators_without_kernels_are_plain_torch_without_a_word(
    fresh: Fresh, a_gpu: SimpleNamespace
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("auto", GPU, torch.float64, kernels="lti") == "torch"
        assert choose("auto", GPU, torch.float32) == "torch"
    assert not fresh.checks


def test_a_failure_is_told_once_in_one_line(fresh: Fresh, a_gpu: SimpleNamespace) -> None:
    fresh.finding = Verdict("gradient of delta is off by 1.0e-01 of its largest value, 2.0e-04 is allowed (zoh)")
    with pytest.warns(UserWarning, match="failed their check") as warned:
        assert [choose("auto", GPU, torch.float32, kernels="selective") for _ in range(3)] == ["torch"] * 3
    [told] = [str(one.message) for one in warned]
    assert told == (
        "msssm scans with plain torch, several times slower than it could: the selective kernels of backend 'triton' "
        "failed their check on cuda:0: gradient of delta is off by 1.0e-01 of its largest value, 2.0e-04 is allowed "
        "(zoh); report it with the output of `msssm doctor`"
    )


def test_tracing_runs_the_check_outside_the_graph(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "fastest_on", lambda device: "triton")
    monkeypatch.setattr(dispatch, "obstacle", lambda *args: None)

    def scan(x: torch.Tensor) -> torch.Tensor:
        return x + (1 if choose("auto", x.device, x.dtype, kernels="lti") == "triton" else 0)

    torch._dynamo.reset()
    compiled = torch.compile(scan, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(())) == 1
    assert compiled(torch.ones(())) == 2
    assert len(fresh.checks) == 1
