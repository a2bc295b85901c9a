"""Two processes on one machine, over gloo, through the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from datamodules import ListOpsDataModule
from tasks import ListOpsTask
from tasks.run.predictions import load
from tests.support.recipes import write_recipe
from tests.support.tolerances import METRIC


def test_two_processes_train_and_test_every_sample_once(tmp_path: Path) -> None:
    """On 41 test samples, which two processes cannot share evenly, they count what one process counts."""
    recipe = write_recipe(tmp_path, max_epochs=1)
    command = [sys.executable, "-m", "tasks.cli.main", "fit", "--config", str(recipe), "--data.test_size=41"]
    subprocess.run(
        [*command, "--trainer.devices=2", "--trainer.strategy=ddp"],
        check=True,
        capture_output=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    run = tmp_path / "runs" / "seed0"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["processes"] == 2
    assert metrics["steps"] == 200 / 20, "a batch is shared, so the number of processes changes no step"

    data = ListOpsDataModule(**yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"])
    data.prepare_data()
    data.setup("test")
    task = ListOpsTask.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True).eval()
    answers = {
        int(i): int(a)
        for b in data.test_dataloader()
        for i, a in zip(b.sample_index, task(b.x, b.lengths).argmax(-1), strict=True)
    }
    targets = {int(i): int(y) for b in data.test_dataloader() for i, y in zip(b.sample_index, b.y, strict=True)}
    right = sum(answers[i] == targets[i] for i in range(41))
    assert metrics["test"]["test/accuracy"] == pytest.approx(right / 41, abs=METRIC)

    saved = load(run / "predictions.npz")
    assert saved.sample.tolist() == list(range(41))
    assert saved.prediction.tolist() == [answers[i] for i in range(41)]
    assert saved.target.tolist() == [targets[i] for i in range(41)]
