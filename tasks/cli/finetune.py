"""`msssm finetune`: a shipped ECG model learns the labels of your own recordings, and answers about new ones."""

from hashlib import sha256
from typing import Any, cast

import numpy as np
import torch

from datamodules.base import SPLITS
from msssm import Backbone
from msssm.errors import InputError
from msssm.pretrained import write_pretrained
from tasks.cli.parser import CommandParser
from tasks.ecg.finetune import OWN, LabelledRecordings, finetune, read_signals, read_table, split_rows
from tasks.ecg.paper import RESEARCH
from tasks.ecg.recordings.inference import offline
from tasks.ecg.recordings.judge import judged_by
from tasks.ecg.recordings.model import FILE, read_model, write_answers
from tasks.ecg.recordings.options import RecordingOptions, add_reading
from tasks.messages import say
from tasks.metrics.bootstrap import percentile_interval, resample
from tasks.metrics.ecg import weighted_auroc
from tasks.paths import path_option
from tasks.reports.markdown import table as as_table

MIN_POSITIVES = 5  # in the validation part, with which a label has a calibration and a threshold of its own
EXAMPLES = """
msssm finetune --records recordings --labels labels.csv --output mine
msssm finetune --records recordings --labels labels.csv --output mine --freeze
"""


def main(args: list[str]) -> None:
    """Teaches a shipped ECG model the labels of your own recordings, and writes a model that msssm ecg asks.

    The table of labels is a CSV: a column `file` (a name in the folder of recordings), a column of 0 and 1 for each
    label, and if they are known `patient` (all recordings of one stay together) and `split` (train, val, test; by
    default about 4 : 1 : 1 at random). The head is new, encoder and backbone learn at a fifth of its rate. The best
    validation is kept; probabilities are calibrated and thresholds chosen on the validation part, and the scores are of
    the test part. The same command resumes after an interruption.

    Raises:
        InputError: the table or a recording cannot be used; nothing is trained.
    """
    parser = CommandParser("finetune", main, EXAMPLES)
    parser.add_argument("--model", metavar="NAME", help="a shipped model's, or a folder; default: the best shipped one")
    parser.add_argument("--records", type=path_option, required=True, metavar="FOLDER", help="of the recordings")
    parser.add_argument("--labels", type=path_option, required=True, metavar="FILE", help="the table of labels, a CSV")
    parser.add_argument("--output", type=path_option, required=True, metavar="FOLDER", help="of the new model")
    parser.add_argument("--epochs", type=int, default=40, metavar="N", help="at most")
    parser.add_argument("--lr", type=float, default=5e-3, metavar="X", help="peak learning rate of the head")
    parser.add_argument("--freeze", action="store_true", help="train the head alone")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the split, the head, order and crops")
    add_reading(parser)
    options = parser.parse_args(args)
    if options.epochs < 1 or options.lr <= 0 or options.seed < 0:
        raise InputError(
            f"--epochs {options.epochs} --lr {options.lr} --seed {options.seed}: give at least 1, above 0, 0"
        )
    if (options.output / FILE).exists():
        raise InputError(f"{options.output} holds a model; choose another --output or delete it")
    base, table = read_model(options.model), read_table(options.labels)
    names = [str(name) for name in table.columns if name not in OWN]
    rows = split_rows(table, options.seed)
    signals = read_signals(table, options.records, base.answers, RecordingOptions.of(options))
    labels = table[names].to_numpy(np.float32)
    window = base.answers.windows.crop or max(map(len, signals))
    data = LabelledRecordings(signals, labels, rows, window, options.seed)
    say(", ".join(f"{len(rows[name]):,} recordings for {name}" for name in SPLITS))
    parameters = {"epochs": options.epochs, "lr": options.lr, "freeze": options.freeze, "seed": options.seed}
    # Another table or another option is another training: it resumes only what it began.
    key = sha256(f"{data.digest} {base.name} {sorted(parameters.items())}".encode()).hexdigest()[:8]
    network, metrics = finetune(base, data, options.output / f"run-{key}", **parameters)
    logits = {
        part: torch.stack([offline(network, signals[row], base.answers.windows) for row in rows[part]]).double().numpy()
        for part in ("val", "test")
    }
    answers = judged_by(
        base.answers, "own", names, [(labels[rows[part]], logits[part]) for part in ("val", "test")], MIN_POSITIVES,
        source=f"{len(table):,} recordings of your own", parts=("the validation part", "the test part"),
    )  # fmt: skip
    patients = table["patient"].to_numpy()[rows["test"]] if "patient" in table else None
    lines = _scores(names, labels[rows["test"]], logits["test"], patients, answers.classes)
    backbone = cast(Backbone, network.backbone)
    write_pretrained(options.output, backbone.config, network.state_dict(), "backbone.")
    write_answers(options.output, answers)
    card = _card(base.name, table, rows, lines, metrics, parameters)
    (options.output / "README.md").write_text("\n".join(card) + "\n")
    print("\n".join(lines))
    say(f"next: msssm ecg RECORDING --model {options.output}")


def _scores(names: list[str], target: Any, logit: Any, patients: Any, classes: Any) -> list[str]:
    """A table of the test part: AUROC with its interval over patients, and the rates at the threshold."""
    resampled = weighted_auroc(target, logit, resample(len(target), group=patients))
    rows = [["label", "with it", "AUROC", "95 % interval", "threshold", "sensitivity", "specificity", "precision"]]
    for k, (name, each) in enumerate(zip(names, classes, strict=True)):
        low, high = percentile_interval(resampled[k])
        rates = (each.threshold, *(each.test.get(rate) for rate in ("sensitivity", "specificity", "precision")))
        shown = ["" if value is None else f"{value:.2f}" for value in rates]
        auroc = f"{each.test['auroc']:.3f}"
        rows.append([name, f"{int(target[:, k].sum())} of {len(target)}", auroc, f"{low:.3f} .. {high:.3f}", *shown])
    return as_table(rows)


def _card(base: str, table: Any, rows: Any, scores: list[str], metrics: Any, parameters: Any) -> list[str]:
    counts = ", ".join(f"{len(rows[name]):,} for {name}" for name in SPLITS)
    over = "patients" if "patient" in table else "recordings"
    given = ", ".join(f"{name} {value}" for name, value in parameters.items())
    return [
        f"# {base}, fine-tuned",
        "",
        f"{RESEARCH} Started from the model {base}; {len(table):,} recordings: {counts}. {given}; "
        f"{metrics['epochs']} epochs, {metrics['cpu_seconds']:.0f} CPU seconds.",
        "",
        f"Scores of the test part, on which nothing was chosen; intervals are over its {over}.",
        "",
        *scores,
    ]
