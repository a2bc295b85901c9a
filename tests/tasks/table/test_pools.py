"""Where trainings run: how many at a time, what becomes of each, and that none outlives its runner."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.table.cluster import RayPool, SubmititPool
from tasks.table.pool import LocalPool, Pool, drive
from tasks.table.training import Training, last_lines
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


class Counting:
    """A pool in which everything ends at the second look."""

    size = 2

    def __init__(self) -> None:
        self.running: list[Training] = []
        self.most = 0
        self.stopped = False

    def start(self, training: Training) -> None:
        self.running.append(training)
        self.most = max(self.most, len(self.running))

    def finished(self) -> list[tuple[Training, int]]:
        return [(self.running.pop(0), 0)]

    def stop(self) -> None:
        self.stopped = True


def test_the_next_is_asked_for_when_there_is_room(tmp_path: Path) -> None:
    pool, events = Counting(), []

    def trainings() -> Iterator[Training]:
        for name in "abc":
            events.append(f"ask {name}")
            yield Training(name, tmp_path, ())

    drive(pool, trainings(), lambda training, code: events.append(f"{training.name} {code}"))
    assert events == ["ask a", "ask b", "a 0", "ask c", "b 0", "c 0"]
    assert pool.most == 2
    assert pool.stopped


def test_what_goes_wrong_in_the_runner_ends_what_runs(tmp_path: Path) -> None:
    def finish(training: Training, code: int) -> None:
        raise KeyboardInterrupt

    pool, slow = LocalPool(2), program(tmp_path, "waits")
    with pytest.raises(KeyboardInterrupt):
        drive(pool, iter([slow, program(tmp_path, "ends")]), finish)
    [process] = pool.running.values()
    assert process.poll() is not None
    assert not slow.complete


def check_each_outcome(pool: Pool, folder: Path) -> None:
    outcomes = {}
    hello = program(folder, "ends", environment=(("GREETING", "hello"),))
    drive(pool, iter([program(folder, "fails"), hello]), lambda t, code: outcomes.update({t.name: code}))
    assert outcomes == {"fails": 1, "ends": 0}
    assert last_lines(folder / "fails") == "msssm: it is wrong"
    assert last_lines(folder / "ends") == f"says hello {Path.cwd()}"


def check_stopped_and_resumed(pool: Pool, folder: Path) -> None:
    slow = program(folder, "waits")
    pool.start(slow)
    wait_for(slow.folder / "started")
    pool.stop()
    wait_for(slow.folder / "last.ckpt")
    assert not slow.complete


def test_processes_of_this_machine(tmp_path: Path) -> None:
    check_each_outcome(LocalPool(2), tmp_path)
    check_stopped_and_resumed(LocalPool(1), tmp_path)
    codes = []
    drive(LocalPool(1), iter([program(tmp_path, "waits")]), lambda _, code: codes.append(code))
    assert codes == [0]


def test_an_exit_code_of_0_is_not_taken_for_complete(tmp_path: Path) -> None:
    """Lightning ends with 0 at SIGTERM."""
    training, codes = program(tmp_path, "waits"), []
    process = training.start()
    wait_for(training.folder / "started")
    process.terminate()
    assert process.wait() == 0
    codes.append(training.code(0))
    (training.folder / "metrics.json").touch()
    codes += [training.code(0), training.code(1)]
    assert codes == [-signal.SIGTERM, 0, 0]


def test_jobs_of_submitit(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    check_each_outcome(SubmititPool(2, "local", tmp_path / "submitit", {}), tmp_path)
    check_stopped_and_resumed(SubmititPool(1, "local", tmp_path / "submitit", {}), tmp_path)


def test_a_job_whose_node_is_taken_away_resumes_in_another(tmp_path: Path) -> None:
    """submitit's signal comes to the job, which writes a checkpoint, and is queued again."""
    pytest.importorskip("submitit")
    pool, slow = SubmititPool(1, "local", tmp_path / "submitit", {}), program(tmp_path, "waits")
    pool.start(slow)
    wait_for(slow.folder / "started")
    [job] = pool.jobs.values()
    [task] = children(job._process.pid)
    [training] = children(task)
    for process in (training, task):  # SLURM signals every process of a job
        os.kill(process, signal.SIGUSR2)
    deadline = time.monotonic() + 60
    while not (codes := pool.finished()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert codes == [(slow, 0)]
    assert (slow.folder / "last.ckpt").exists()


@pytest.mark.slow
def test_tasks_of_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    pool = RayPool(2, "local", {"num_cpus": 0.5})
    pool.stop, stop = lambda: None, pool.stop  # type: ignore[method-assign]
    check_each_outcome(pool, tmp_path)
    pool.stop = stop  # type: ignore[method-assign]
    check_stopped_and_resumed(pool, tmp_path)


@pytest.mark.parametrize(
    ("cluster", "resources", "message"),
    [
        ("nothing", {}, "--cluster nothing: AutoExecutor doesn't know any executor named nothing"),
        ("local", {"walltime": 3}, "--cluster local: Parameter 'walltime' need to be prefixed by an executor name"),
    ],
)
def test_what_submitit_does_not_know_is_told(
    cluster: str, resources: dict[str, int], message: str, tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(ValueError, match=message):
        SubmititPool(1, cluster, tmp_path, resources)


def test_what_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("submitit", "ray"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"--cluster needs submitit: pip install 'msssm\[slurm\]'"):
        SubmititPool(1, "slurm", tmp_path, {})
    with pytest.raises(ValueError, match=r"--ray needs Ray: pip install 'msssm\[ray\]'"):
        RayPool(1, "auto", {})
