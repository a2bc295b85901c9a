"""Measures what a shipped model's weights are worth to other labels of PTB-XL, for docs/results/finetune.

    python docs/finetune.py data    # PTB-XL in data/ptbxl

Sex, and an age above 60: labels that the model was not made for. Folds are respected: training records of 1 to 8, the
validation of 9, the test of 10. The same network starts from the shipped weights and from a random start, whose encoder
and backbone have the head's learning rate.
"""

import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from datamodules.ptbxl import files
from msssm import Backbone, SequenceClassifier
from msssm.pretrained import layer_factory
from tasks.ecg.finetune import LabelledRecordings, finetune, read_signals
from tasks.ecg.recordings.inference import offline
from tasks.ecg.recordings.model import ECGModel, read_model
from tasks.ecg.recordings.options import RecordingOptions
from tasks.metrics.bootstrap import percentile_interval, resample
from tasks.metrics.ecg import auroc, weighted_auroc

MODEL, SIZES, VALIDATION, SEED = "ptbxl-small", (100, 300, 1000), 300, 0
LABELS = ["sex", "over 60"]
OUTPUT = Path(__file__).parent / "results/finetune/finetune.csv"


def start(kind: str) -> ECGModel:
    """The shipped model, or its network at a random start."""
    model = read_model(MODEL)
    if kind == "shipped weights":
        return model
    torch.manual_seed(SEED)
    config = model.network.backbone.config  # type: ignore[operator]
    backbone = Backbone(**{**config, "layer": layer_factory(config["layer"])})
    return model._replace(network=SequenceClassifier(nn.Linear(12, backbone.d_model), backbone, 1))


def main() -> None:
    """Trains and tests each size from both starts, and writes a line for each label."""
    folder = files.find(Path(sys.argv[1]) / "ptbxl")
    table = files.read_database(folder)
    # 300 years stand for above 89; 1 is female.
    table = pd.DataFrame(
        {
            "file": table[files.FILENAME[100]],
            "patient": table.patient_id,
            "fold": table.strat_fold,
            LABELS[0]: table.sex,
            LABELS[1]: (table.age > 60).astype(int),
        }
    )
    generator = np.random.default_rng(SEED)
    chosen = [
        part.sample(size, random_state=generator)
        for part, size in (
            (table[table.fold < 9], max(SIZES)),
            (table[table.fold == 9], VALIDATION),
            (table[table.fold == 10], int((table.fold == 10).sum())),
        )
    ]
    table = pd.concat(chosen, ignore_index=True)
    ends = np.cumsum([len(part) for part in chosen])
    model = read_model(MODEL)
    signals = read_signals(table, folder, model.answers, RecordingOptions(None, None, None, "derive", "accept"))
    labels = table[LABELS].to_numpy(np.float32)
    test = np.arange(ends[1], ends[2])
    counts = resample(len(test), group=table.patient.to_numpy()[test])
    lines = []
    for size in SIZES:
        rows = {"train": np.arange(size), "val": np.arange(ends[0], ends[1]), "test": test}
        for kind, lower in (("shipped weights", 0.2), ("random start", 1.0)):
            data = LabelledRecordings(signals, labels, rows, model.answers.windows.crop or 1000, SEED)
            with tempfile.TemporaryDirectory() as run:
                settings = {"epochs": 40, "lr": 5e-3, "freeze": False, "seed": SEED, "lower": lower}
                network, metrics = finetune(start(kind), data, Path(run) / "run", **settings)  # type: ignore[arg-type]
            logits = (
                torch.stack([offline(network, signals[row], model.answers.windows) for row in test]).double().numpy()
            )
            for k, (label, value) in enumerate(zip(LABELS, auroc(labels[test], logits), strict=True)):
                low, high = percentile_interval(weighted_auroc(labels[test], logits, counts)[k])
                lines.append(
                    {
                        "label": label, "records": size, "start": kind, "auroc": round(float(value), 4),
                        "low": round(low, 4), "high": round(high, 4), "seed": SEED, "epochs": metrics["epochs"],
                        "cpu_seconds": round(metrics["cpu_seconds"]), "model": MODEL, "commit": metrics["commit"],
                        "torch": metrics["versions"]["torch"], "processor": metrics["hardware"]["processor"],
                    }
                )  # fmt: skip
                print(lines[-1], flush=True)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    with OUTPUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
