"""One sample after another through the model of configs/ptbxl.yaml (100 Hz, 12 leads), on one core.

python -m benchmarks.streaming [--steps 5000] [--results results/bench]

Beside it, in the same run, the peer that keeps no state: the same network over the whole last 10 s again, for each new
sample or for each second. Steps are first seen to end at the logits of the whole run. Writes streaming.json and .md.
"""

import argparse
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from benchmarks.report import machine
from msssm import Backbone, MultiScaleSSM, SequenceClassifier, StreamingClassifier
from tasks.run.provenance import provenance

RECIPE = Path(__file__).parents[1] / "configs/ptbxl.yaml"
RATE, LEADS, CLASSES, SECONDS = 100, 12, 71, 10  # Hz
GOAL = 50  # times real time
ROUNDS = 5


def network() -> SequenceClassifier:
    """The recipe's, with initial weights."""
    options = yaml.safe_load(RECIPE.read_text())["model"]["init_args"]["backbone"]["init_args"]
    layer = options.pop("layer")["init_args"]
    torch.manual_seed(0)
    backbone = Backbone(partial(MultiScaleSSM, **layer), **options)
    return SequenceClassifier(nn.Linear(LEADS, backbone.d_model), backbone, CLASSES).eval()


def steps(model: Any, x: Tensor) -> tuple[Tensor, list[float]]:
    """Last logits over x (1, L, 12), and the seconds that each step took."""
    state, seconds, logits = model.initial_state(1), [], x
    for t in range(x.shape[1]):
        start = time.perf_counter()
        logits, state = model.step(x[:, t], state)
        seconds.append(time.perf_counter() - start)
    return logits, seconds


def whole(model: SequenceClassifier, x: Tensor, count: int) -> list[float]:
    """Seconds of `count` runs over the last 10 s."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        model(x[:, -SECONDS * RATE :])
        seconds.append(time.perf_counter() - start)
    return seconds


def row(method: str, seconds: list[float], per_sample: float) -> dict[str, Any]:
    """Of calls that each stand for 1 / per_sample samples."""
    milliseconds = 1e3 * np.array(seconds)
    rate = 1 / (np.mean(seconds) * per_sample)
    return {
        "method": method,
        "samples per second": rate,
        "times real time": rate / RATE,
        "median ms per call": float(np.median(milliseconds)),
        "p99 ms per call": float(np.percentile(milliseconds, 99)),
        "calls": len(seconds),
    }


@torch.inference_mode()
def measure(count: int) -> tuple[list[dict[str, Any]], float]:
    """Rows of the methods, measured in turn, and the largest error of the last logits."""
    model = network()
    streaming = StreamingClassifier(model)
    x = torch.randn(1, SECONDS * RATE, LEADS, generator=torch.Generator().manual_seed(0))
    expected = model(x)
    error = max((steps(method, x)[0] - expected).abs().max().item() for method in (streaming, model))
    if not error < 1e-4:
        raise SystemExit(f"steps end {error:.1e} from the logits of the whole run, and have no figures")
    long = x.repeat(1, -(-count // x.shape[1]), 1)[:, :count]
    methods: dict[str, Callable[[], list[float]]] = {
        "StreamingClassifier.step": lambda: steps(streaming, long)[1],
        "SequenceClassifier.step": lambda: steps(model, x[:, :200])[1],
        "whole": lambda: whole(model, x, 5),
    }
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(ROUNDS):
        for name, method in methods.items():
            times[name] += method()
    rows = [row(name, times[name], 1) for name in list(methods)[:2]]
    rows.append(row("10 s again for each second", times["whole"], 1 / RATE))
    rows.append(row("10 s again for each sample", times["whole"], 1))
    return rows, error


def as_markdown(content: dict[str, Any]) -> str:
    """The table, and where it comes from."""
    about, first = content["machine"], content["rows"][0]
    lines = [
        f"# Streaming on {about['device']}",
        "",
        f"configs/ptbxl.yaml, {content['parameters']:,} parameters, one row, float32, one thread, "
        f"{about['capability']}, torch {about['torch']}, Python {about['python']}; commit "
        f"{(content['commit'] or 'none')[:12]}"
        f"{' with uncommitted changes' if content['dirty'] else ''}, {content['date']}. Load average at the start "
        f"{content['load']:.1f}.",
        f"Steps end {content['error']:.0e} from the logits of the whole run. Goal: {GOAL} times real time, "
        f"{1e3 / (GOAL * RATE):g} ms per step: {'met' if first['times real time'] >= GOAL else 'missed'}.",
        "",
        "| method | samples/s | times real time | median, ms per call | p99 | x 10 s again for each sample |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for found in content["rows"]:
        ratio = found["samples per second"] / content["rows"][-1]["samples per second"]
        lines.append(
            f"| {found['method']} | {found['samples per second']:,.0f} | {found['times real time']:.3g} | "
            f"{found['median ms per call']:.3f} | {found['p99 ms per call']:.3f} | {ratio:.3g} |"
        )
    return "\n".join(lines) + "\n"


def main(args: list[str] | None = None) -> None:
    """Measures, and prints what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000, help="of each of the five rounds")
    parser.add_argument("--results", type=Path, default=Path("results/bench"), help="where to write")
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    load = Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").exists() else "nan"
    about = machine(torch.device("cpu"))
    origin = provenance()
    rows, error = measure(options.steps)
    content = {
        "machine": about,
        "commit": origin["commit"],
        "dirty": origin["dirty"],
        "date": datetime.now(UTC).date().isoformat(),
        "load": float(load),
        "parameters": sum(p.numel() for p in network().parameters()),
        "error": error,
        "rows": rows,
    }
    folder = options.results / re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "streaming.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "streaming.md").write_text(as_markdown(content))
    print(as_markdown(content))
    print(f"written to {folder}: streaming.json, streaming.md")


if __name__ == "__main__":
    main()
