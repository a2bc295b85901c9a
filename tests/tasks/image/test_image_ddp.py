"""Images over two processes, and over two nodes of one process each, on one machine over gloo."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from datamodules import DigitsDataModule
from tasks import ImageTask
from tasks.run.predictions import load
from tests.support.image_recipe import write_image_recipe
from tests.support.tolerances import METRIC


def run_together(commands: Sequence[Sequence[str]]) -> None:
    """Starts all of them, waits for all of them, and leaves none behind."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        for command in commands
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in processes:
            process.kill()


def check_against_one_process(run: Path, eval_batch_size: int) -> None:
    """What the run measured of its best checkpoint, to 1e-6, measured again by one process; each sample once."""
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["processes"] == 2
    assert metrics["steps"] == -(-1197 // 64), "a batch is shared, so the number of processes changes no step"
    task = ImageTask.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True)
    data = DigitsDataModule(eval_batch_size=eval_batch_size)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    [val] = trainer.validate(task, data, verbose=False)
    [test] = trainer.test(task, data, verbose=False)
    assert metrics["validation"]["best"] == pytest.approx(val["val/accuracy"], abs=METRIC)
    for name in ("test/accuracy", "test/accuracy_top5", "test/loss"):
        assert metrics["test"][name] == pytest.approx(test[name], abs=METRIC), name
    assert np.array_equal(metrics["report"]["confusion"], task.test_confusion.compute().numpy())
    assert np.array_equal(load(run / "predictions.npz").sample, np.arange(400))
    assert torch.equal(torch.tensor(load(run / "predictions.npz").prediction), task.test_predictions.compute()[2])


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(tmp_path: Path) -> None:
    """200 validation and 400 test images in batches of 27 per process: the last ones are smaller."""
    recipe = write_image_recipe(tmp_path, max_epochs=1)
    command = [sys.executable, "-m", "tasks.cli.main", "fit", "--config", str(recipe), "--data.eval_batch_size=27"]
    run_together([[*command, "--trainer.devices=2", "--trainer.strategy=ddp"]])
    check_against_one_process(tmp_path / "run", 27)


@pytest.mark.slow
def test_torchrun_on_two_nodes_measures_what_one_process_measures(tmp_path: Path) -> None:
    """Two agents on this machine, as docs/cluster.md starts one on each node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    recipe = write_image_recipe(tmp_path, max_epochs=1)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    fit = ["-m", "tasks.cli.main", "fit", "--config", str(recipe), "--data.eval_batch_size=27"]
    nodes = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"]
    run_together([[*torchrun, f"--node-rank={rank}", *fit, *nodes] for rank in range(2)])
    check_against_one_process(tmp_path / "run", 27)
