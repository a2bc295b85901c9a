"""Where trainings run: how many at a time, what becomes of each, and that none outlives its runner."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from msssm.errors import InputError
from tasks.table.cluster import Job, submitter
from tasks.table.run import Process, Start, Training, drive
from tests.support.waiting import wait_for

# A training that ends at once, fails, writes a checkpoint at SIGTERM, or resumes from it; without seconds of imports.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
what, folder = sys.argv[1], Path(sys.argv[2])
print("says", os.environ.get("GREETING"), os.getcwd())
if what == "fails":
    sys.exit("msssm: it is wrong")
def stop(*_):
    (folder / "last.ckpt").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
(folder / "started").touch()
while what == "waits" and not (folder / "last.ckpt").exists():
    time.sleep(0.01)
(folder / "metrics.json").write_text("{}")
"""


class Program(Training):
    """Its first argument says what it does."""

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-c", PROGRAM, *self.arguments, str(self.folder)]


def program(folder: Path, what: str, **other: object) -> Program:
    (folder / what).mkdir(exist_ok=True)
    return Program(what, folder / what, (what,), **other)  # type: ignore[arg-type]


def children(process: int) -> list[int]:
    words = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=True)
    return [int(word) for word in words.stdout.split()]


class AtOnce:
    """A process that has ended when it is looked at."""

    def poll(self) -> int:
        return 0

    def wait(self) -> int:
        return 0

    def terminate(self) -> None:
        raise AssertionError("it has ended")

    kill = terminate


def test_the_next_is_asked_for_when_there_is_room(tmp_path: Path) -> None:
    events: list[str] = []

    def trainings() -> Iterator[Training]:
        for name in "abc":
            events.append(f"ask {name}")
            (tmp_path / name).mkdir()
            (tmp_path / name / "metrics.json").touch()
            yield Training(name, tmp_path / name, ())

    def finish(training: Training, code: int) -> None:
        events.append(f"{training.name} {code}")

    drive(lambda training: AtOnce(), 2, trainings(), finish)
    assert events == ["ask a", "ask b", "a 0", "b 0", "ask c", "c 0"]


def test_what_goes_wrong_in_the_runner_ends_what_runs(tmp_path: Path) -> None:
    def finish(training: Training, code: int) -> None:
        raise ArithmeticError

    started: dict[str, Process] = {}

    def start(training: Training) -> Process:
        return started.setdefault(training.name, training.start())

    slow = program(tmp_path, "waits")
    with pytest.raises(ArithmeticError):
        drive(start, 2, iter([slow, program(tmp_path, "ends")]), finish)
    assert started["waits"].poll() is not None
    assert not slow.complete


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_trainings_with_a_checkpoint(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, before = program(tmp_path, "waits"), signal.getsignal(number)

    def start(training: Training) -> Process:
        process = training.start()
        wait_for(slow.folder / "started")
        os.kill(os.getpid(), number)  # before the runner knows of the process
        return process

    with pytest.raises(SystemExit, match="130"):
        drive(start, 1, iter([slow]), lambda *_: None)
    assert capsys.readouterr().err == "msssm: stopped; the same command resumes\n"
    assert (slow.folder / "last.ckpt").exists()
    assert signal.getsignal(number) is before
    drive(Training.start, 1, iter([slow]), lambda *_: None)
    assert slow.complete


def check_each_outcome(start: Start, folder: Path) -> None:
    outcomes = {}
    hello, fails = program(folder, "ends", environment=(("GREETING", "hello"),)), program(folder, "fails")
    drive(start, 2, iter([fails, hello]), lambda t, code: outcomes.update({t.name: code}))
    assert outcomes == {"fails": 1, "ends": 0}
    assert fails.last_lines() == "msssm: it is wrong"
    assert hello.last_lines() == f"says hello {Path.cwd()}"


def test_processes_of_this_machine(tmp_path: Path) -> None:
    check_each_outcome(Training.start, tmp_path)


def test_an_exit_code_of_0_is_not_taken_for_complete(tmp_path: Path) -> None:
    """Lightning ends with 0 at SIGTERM."""
    training = program(tmp_path, "ends")
    codes = [training.code(0)]
    (training.folder / "metrics.json").touch()
    codes += [training.code(0), training.code(1)]
    assert codes == [-signal.SIGTERM, 0, 0]


def ended(process: Any) -> int:
    """Exit code of a job; fails if it takes longer than a minute."""
    deadline = time.monotonic() + 60
    while (code := process.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(code)


@pytest.mark.slow
def test_jobs_of_submitit(tmp_path: Path) -> None:
    """A job that is cancelled writes a checkpoint; one whose node is taken away resumes in another."""
    pytest.importorskip("submitit")
    start = submitter("local", tmp_path / "submitit", [])
    check_each_outcome(start, tmp_path)
    slow = program(tmp_path, "waits")
    process = start(slow)
    wait_for(slow.folder / "started")
    process.terminate()
    ended(process)
    wait_for(slow.folder / "last.ckpt")
    assert not slow.complete

    for path in ("started", "last.ckpt"):
        (slow.folder / path).unlink()
    process = start(slow)
    assert isinstance(process, Job)
    wait_for(slow.folder / "started")
    [task] = children(process.job._process.pid)
    [training] = children(task)
    for each in (training, task):  # SLURM signals every process of a job
        os.kill(each, signal.SIGUSR2)
    assert (slow.code(ended(process)), slow.complete) == (0, True)
    assert (slow.folder / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("cluster", "resource", "message"),
    [
        ("nothing", "gpus=1", "--cluster nothing: AutoExecutor doesn't know any executor named nothing"),
        ("local", "walltime=3", "--cluster local: Parameter 'walltime' need to be prefixed by an executor name"),
        ("local", "walltime", "--resources walltime: expected KEY=VALUE"),
    ],
)
def test_what_submitit_does_not_know_is_told(cluster: str, resource: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(InputError, match=message):
        submitter(cluster, tmp_path, [resource])


def test_what_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"--cluster needs submitit: pip install 'msssm\[slurm\]'"):
        submitter("slurm", tmp_path, [])
