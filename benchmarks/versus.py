"""Training steps of the quick recipes on this checkout and on another commit, in turn.

git worktree add ../before COMMIT && (cd ../before && python setup.py build_ext --inplace)
python -m benchmarks.versus ../before [--threads 1 2] [--rounds 8] [--recompute]

Each checkout computes in a process of its own, in a user's environment; they take turns, so that a slow spell of the
machine meets both. The best of all turns counts.
"""

import argparse
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tasks.table.spec import named_recipe

RECIPES = {
    "ListOps, 4 x 64, N = 4, batch 50, lengths 8..50": "quick/listops/msssm_s6",
    "ECG, 3 x 48, N = 4, batch 16, length 1000": "quick/ptbxl/msssm_s6",
}
STEPS = 10  # of one turn


def main(args: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="root of another checkout, with its native library built")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--recompute", action="store_true", help="with recomputation, which the quick recipes have off")
    options = parser.parse_args(args)
    print("| training step | threads | other, ms | this, ms | times as fast |\n|---|---|---|---|---|")
    for name, row in RECIPES.items():
        recipe = str(named_recipe(row))
        for threads in options.threads:
            workers = [
                _start(root, recipe, threads, options.recompute) for root in (options.other, Path(__file__).parents[1])
            ]
            turns = [[_turn(worker) for worker in workers] for _ in range(options.rounds)]
            for worker in workers:
                worker.communicate()
            before, now = (min(times) for times in zip(*turns, strict=True))
            print(f"| {name} | {threads} | {before:.1f} | {now:.1f} | {before / now:.2f} |", flush=True)


def _start(root: Path, recipe: str, threads: int, recompute: bool) -> subprocess.Popen[str]:
    """A worker that imports msssm from `root`, with what the `msssm` command there sets before torch is loaded."""
    settle = "import importlib.util as u; u.find_spec('tasks.process') and __import__('tasks.process').process.settle()"
    work = f"run_path({str(Path(__file__).resolve())!r})['work']({recipe!r}, {threads}, {recompute})"
    code = f"{settle}; from runpy import run_path; {work}"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root.resolve())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _turn(worker: subprocess.Popen[str]) -> float:
    """Milliseconds of its best step in this turn."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def work(recipe: str, threads: int, recompute: bool) -> None:
    """In a worker: a turn for every line that comes in."""
    import torch

    torch.set_num_threads(threads)
    step = training_step(recipe, recompute)
    for _ in sys.stdin:
        times = []
        for _ in range(STEPS):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        print(1e3 * min(times), flush=True)


def training_step(recipe: str, recompute: bool = False) -> Callable[[], None]:
    """Forward, loss, backward, clipping and a task's AdamW of a recipe's network, on random data of its sizes."""
    import torch
    import yaml
    from torch import nn

    from msssm import Backbone, MultiScaleSSM, SequenceClassifier
    from tasks.base import SequenceTask

    content = yaml.safe_load(Path(recipe).read_text())
    data, backbone = content["data"]["init_args"], content["model"]["init_args"]["backbone"]["init_args"]
    layer = backbone.pop("layer")["init_args"]
    backbone["recompute"] = recompute
    if "recompute" not in inspect.signature(Backbone).parameters:  # an older checkout, which keeps everything
        del backbone["recompute"]
    torch.manual_seed(0)
    body = Backbone(partial(MultiScaleSSM, **layer), **backbone)
    batch = data["batch_size"]
    if "max_length" in data:
        network = SequenceClassifier(nn.Embedding(15, body.d_model), body, 10)
        inputs = (
            torch.randint(15, (batch, data["max_length"])),
            torch.randint(data["min_length"], data["max_length"] + 1, (batch,)),
        )
        loss = partial(nn.functional.cross_entropy, target=torch.arange(batch) % 10)
    else:
        network = SequenceClassifier(nn.Linear(12, body.d_model), body, 71)
        inputs = (torch.randn(batch, 1000, 12),)
        loss = partial(nn.functional.binary_cross_entropy_with_logits, target=(torch.rand(batch, 71) > 0.9).float())
    task = SequenceTask(lr=1e-4, weight_decay=0.03, ssm_lr=None, warmup_epochs=0)
    task.network = network
    optimizer = task.configure_optimizers()["optimizer"]

    def step() -> None:
        optimizer.zero_grad()
        loss(network(*inputs)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
