"""Several processes over gloo: the gradients of one, and a fault of one ends all, with its own error shown."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from datamodules import ListOpsDataModule
from msssm import Backbone, MultiScaleSSM
from tasks import ListOpsTask
from tests.support import runs
from tests.support.recipes import write_recipe
from tests.support.tolerances import METRIC, assert_near


def _gradients(rank: int, world_size: int, folder: str) -> None:
    """Saves the gradients of three batches, as rank zero has them, in float64."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store{world_size}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    torch.manual_seed(0)
    task = ListOpsTask(Backbone(partial(MultiScaleSSM, levels=2, state_size=2), d_model=8, n_layers=2)).double()
    model = DistributedDataParallel(task)
    data = ListOpsDataModule(
        folder, 12, 4, 30, 4, 4, train_size=41, val_size=4, test_size=4
    )  # batches of 12, 12, 12 and 5, of which 4 or 5 are shared
    data.prepare_data()
    data.setup("fit")
    data.trainer = _Shard(rank, world_size)  # type: ignore[assignment]
    gradients = []
    for batch in data.train_dataloader():
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(batch.x, batch.lengths), batch.y).backward()
        if len(batch.y) * world_size == 12:
            gradients.append({n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None})
    assert len(gradients) == 3
    if rank == 0:
        torch.save(gradients, f"{folder}/gradients{world_size}.pt")
    torch.distributed.destroy_process_group()


class _Shard:
    """What the data module asks of a trainer."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.global_rank, self.world_size, self.state = rank, world_size, type("State", (), {"fn": None})


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_gradients_are_those_of_one_process_on_the_same_batch(world_size: int, tmp_path: Path) -> None:
    for processes in (1, world_size):
        torch.multiprocessing.start_processes(  # type: ignore[no-untyped-call]
            _gradients, (processes, str(tmp_path)), nprocs=processes, start_method="forkserver"
        )
    one, several = (torch.load(tmp_path / f"gradients{n}.pt", weights_only=True) for n in (1, world_size))
    for batch, expected in zip(several, one, strict=True):
        assert batch.keys() == expected.keys()
        for name in batch:
            assert_near(batch[name], expected[name], METRIC)


FAULTY = """
import os, signal, sys, time
from tasks import ListOpsTask
from tasks.cli.main import main
original = ListOpsTask.training_step
def training_step(self, batch, batch_idx):
    if self.global_rank == 1 and self.global_step == 3:
        {fault}
    return original(self, batch, batch_idx)
ListOpsTask.training_step = training_step
main()
"""


def _launch(tmp_path: Path, fault: str, *options: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A job of two processes whose second has the fault at step 3; and its seconds, start included."""
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY.format(fault=fault))
    recipe = write_recipe(tmp_path)
    command = [sys.executable, str(script), "fit", "--config", str(recipe), "--trainer.devices=2", *options]
    start = time.monotonic()
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
        process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True, env=environment)
        try:
            code = process.wait(timeout=150)
            seconds = time.monotonic() - start
            deadline = time.monotonic() + 15
            while (left := _alive(process.pid)) and time.monotonic() < deadline:
                time.sleep(0.2)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert not left, "a process of the job outlived it"
    outputs = ((tmp_path / name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(command, code, *outputs), seconds


def _alive(session: int) -> list[int]:
    """Processes of a session that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, its_session = stat.read_text().rsplit(")", 1)[1].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "options", "message"),
    [
        ("raise RuntimeError('rank 1 fell over')", ["--trainer.strategy=ddp"], "RuntimeError: rank 1 fell over"),
        ("os.kill(os.getpid(), signal.SIGKILL)", ["--trainer.strategy=ddp"], ""),
        (
            "time.sleep(600)",
            ["--trainer.strategy=lightning.pytorch.strategies.DDPStrategy", "--trainer.strategy.timeout=0:00:15"],
            "Timed out",
        ),
    ],
    ids=["raises", "killed", "hangs"],
)
def test_a_fault_of_one_process_ends_the_job(tmp_path: Path, fault: str, options: list[str], message: str) -> None:
    done, seconds = _launch(tmp_path, fault, *options)
    print(f"ended after {seconds:.1f} s, exit code {done.returncode}")
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / "runs/seed0/metrics.json").exists()
    assert seconds < 120


@pytest.mark.slow
def test_a_resumed_job_of_two_processes_is_exact(tmp_path: Path) -> None:
    """SIGTERM to the first of two processes; resumed with two, the same to the bit."""
    recipe = write_recipe(tmp_path)
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, "-m", "tasks.cli.main", "fit", "--config", str(recipe), *two]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, f"--run_dir={tmp_path}/whole"], check=True, env=environment, capture_output=True)
    done, _ = _launch_to(tmp_path, "cut")
    assert done.returncode == 143, done.stderr[-2000:]
    assert "SIGTERM: saved at step" in done.stderr
    subprocess.run([*command, f"--run_dir={tmp_path}/cut"], check=True, env=environment, capture_output=True)
    runs.assert_same(tmp_path / "cut", tmp_path / "whole")


def _launch_to(tmp_path: Path, name: str) -> tuple[subprocess.CompletedProcess[str], float]:
    fault = "os.kill(os.getppid(), signal.SIGTERM)"
    return _launch(tmp_path, fault, "--trainer.strategy=ddp", f"--run_dir={tmp_path}/{name}")
