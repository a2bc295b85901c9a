"""What the live diagnostics add to a training, and how long `msssm diagnose` takes.

python -m benchmarks.diagnostics [--pairs 10] [--results results/bench]

A block is a tenth of the quick ListOps recipe: its first 160 steps and the validation after them. Blocks with and
without the callbacks alternate in one process, and must end at the same validation loss. CPU time of the process is
compared, which other programs disturb least. Then `msssm diagnose` of quick and full-size networks, at their random
start, on expressions of about 2048 tokens. Writes diagnostics.json and .md.
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.report import machine
from tasks.cli.load import build
from tasks.run.bad_batches import LossSpikes
from tasks.run.dashboard import Dashboard
from tasks.run.provenance import provenance

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = {"quick": CONFIGS / "quick/listops/msssm_s6.yaml", "full size": CONFIGS / "listops.yaml"}
STEPS = 160
GOAL_RATIO, GOAL_SECONDS = 1.05, 60
# Expressions that long are rare: a handful.
LONG = ["--data.min_length=2040", "--data.max_length=2057", "--data.max_depth=10", "--data.max_args=10"]
FEW = ["--data.train_size=4", "--data.val_size=8", "--data.test_size=4"]


class Stopwatch(Callback):
    """Seconds of the process' CPU and of the clock, between the start and the end of the training loop."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.process_time(), time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.cpu, self.wall = time.process_time() - self._start[0], time.perf_counter() - self._start[1]


def block(task: pl.LightningModule, data: pl.LightningDataModule, live: bool, folder: str) -> dict[str, float]:
    """Of the first steps of the recipe, from the same weights and on the same batches each time."""
    start = {name: value.clone() for name, value in task.state_dict().items()}
    torch.manual_seed(0)
    watch = Stopwatch()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=STEPS,
        val_check_interval=0.1,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        log_every_n_steps=20,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=TensorBoardLogger(folder, name="live" if live else "plain"),
        callbacks=[watch, *([Dashboard(), LossSpikes()] if live else [])],
    )
    trainer.fit(task.train(), datamodule=data)
    loss = trainer.callback_metrics["val/loss"].item()
    task.load_state_dict(start)
    return {"cpu": watch.cpu, "wall": watch.wall, "loss": loss}


def callbacks_cost(pairs: int) -> list[dict[str, Any]]:
    """One line per pair of blocks, whose order alternates; a first block of each kind does not count.

    Raises:
        SystemExit: if the diagnostics change the training.
    """
    built = build(RECIPES["quick"], [])
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(pairs + 1):
            order = (True, False) if index % 2 else (False, True)
            pair = {live: block(built.model, built.datamodule, live, folder) for live in order}
            if pair[True]["loss"] != pair[False]["loss"]:
                raise SystemExit(f"the diagnostics change the training: validation losses {pair}")
            found.append({"live": pair[True], "plain": pair[False]})
    return found[1:]


def diagnose_cost() -> list[dict[str, Any]]:
    """Seconds of the whole command, from its start to the page."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, recipe in RECIPES.items():
            run = Path(folder) / name
            words = ["diagnose", "--config", str(recipe), f"--run_dir={run}", f"--data.root={folder}", *LONG, *FEW]
            # Once for the data, whose making is no part of it.
            build(recipe, words[3:]).datamodule.prepare_data()
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run([sys.executable, "-m", "tasks.cli.main", *words], check=True, stdout=subprocess.DEVNULL)
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            result = json.loads((run / "diagnostics.json").read_text())
            rows.append(
                {
                    "network": name,
                    "parameters": result["parameters"],
                    "layers": len(result["layers"]),
                    "lengths": result["lengths"],
                    "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
                    "wall": wall,
                }
            )
    return rows


def ratios(pairs: list[dict[str, Any]], clock: str) -> list[float]:
    """Of each pair, live over plain; clock is "cpu" or "wall"."""
    return [pair["live"][clock] / pair["plain"][clock] for pair in pairs]


def as_markdown(content: dict[str, Any]) -> str:
    """The figures, and where they come from."""
    about, found = content["machine"], ratios(content["pairs"], "cpu")
    median = statistics.median(found)
    per_block = statistics.median(pair["plain"]["cpu"] for pair in content["pairs"])
    lines = [
        f"# Diagnostics on {about['device']}",
        "",
        f"One thread, {about['capability']}, torch {about['torch']}, Python {about['python']}; commit "
        f"{(content['commit'] or 'none')[:12]}{' with uncommitted changes' if content['dirty'] else ''}, "
        f"{content['date']}. Load average at the start {content['load']:.1f}: read CPU seconds, not the clock's.",
        "",
        f"Live diagnostics (`Dashboard`, `LossSpikes`), {STEPS} steps and one validation of the quick ListOps recipe, "
        f"{len(found)} pairs of blocks with and without in turn, ending at the same loss: CPU time with over without "
        f"**{median:.3f}** (median; {min(found):.3f} .. {max(found):.3f}), of {per_block:.1f} s. "
        f"Goal: at most {GOAL_RATIO}: {'met' if median <= GOAL_RATIO else 'missed'}.",
        "",
        f"`msssm diagnose`, the whole command, 4 samples; goal: under {GOAL_SECONDS} s.",
        "",
        "| ListOps network | parameters | layers | lengths | CPU s | s by the clock |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in content["diagnose"]:
        lengths = f"{min(row['lengths'])} .. {max(row['lengths'])}"
        lines.append(
            f"| {row['network']} | {row['parameters']:,} | {row['layers']} | {lengths} | {row['cpu']:.1f} | "
            f"{row['wall']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(args: list[str] | None = None) -> None:
    """Measures, and prints what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10, help="of blocks, with the diagnostics and without")
    parser.add_argument("--results", type=Path, default=Path("results/bench"), help="where to write")
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    load = Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").exists() else "nan"
    about, origin = machine(torch.device("cpu")), provenance()
    content = {
        "machine": about,
        "commit": origin["commit"],
        "dirty": origin["dirty"],
        "date": datetime.now(UTC).date().isoformat(),
        "load": float(load),
        "pairs": callbacks_cost(options.pairs),
        "diagnose": diagnose_cost(),
    }
    folder = options.results / re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "diagnostics.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "diagnostics.md").write_text(as_markdown(content))
    print(as_markdown(content))
    print(f"written to {folder}: diagnostics.json, diagnostics.md")


if __name__ == "__main__":
    main()
