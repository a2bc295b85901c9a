"""SLURM's automatic requeue, with its environment and its command faked: what is requeued goes on exactly."""

import os
import re
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.recipes import write_recipe

# What `srun` tells a job of one task.
JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NNODES": "1",
    "SLURM_NODELIST": "localhost",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
SCONTROL = """#!/bin/sh
echo "$@" >> {record}
kill -{last} $PPID
"""


def _warned(folder: Path, job: dict[str, str], step: int | None) -> None:
    """A fault: a job of SLURM, that sends SIGUSR1 within `step`; SLURM ends it as it is requeued."""
    os.environ.update(job)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    if step is not None:
        runs.kill_at(step, signal.SIGUSR1)


@pytest.mark.parametrize(
    ("job", "asked", "last", "code"),
    [
        ({}, "4711", "TERM", 143),
        pytest.param(
            {"SLURM_ARRAY_JOB_ID": "81", "SLURM_ARRAY_TASK_ID": "5"},
            *("81_5", "KILL", -signal.SIGKILL),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["job", "array"],
)
def test_a_requeued_job_goes_on_exactly(job: dict[str, str], asked: str, last: str, code: int, tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(SCONTROL.format(record=tmp_path / "asked", last=last))
    scontrol.chmod(0o755)
    command, log = ["fit", "--config", str(write_recipe(tmp_path))], tmp_path / "log"
    assert runs.run([*command, f"--run_dir={tmp_path / 'whole'}"], log) == 0
    command.append(f"--run_dir={tmp_path / 'cut'}")
    assert runs.run(command, log, partial(_warned, tmp_path, {**JOB, **job}, 12)) == code, log.read_text()[-2000:]
    assert (tmp_path / "asked").read_text() == f"requeue {asked}\n"
    assert not (tmp_path / "cut/metrics.json").exists()
    assert list((tmp_path / "cut").glob("hpc_ckpt_*.ckpt"))
    assert runs.run(command, log, partial(_warned, tmp_path, {**JOB, **job}, None)) == 0, log.read_text()[-2000:]
    assert re.search(r"fit from \S+\.ckpt, step 1[3-5]\n", log.read_text())
    runs.assert_same(tmp_path / "cut", tmp_path / "whole")
