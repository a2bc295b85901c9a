"""`msssm listops-report`: accuracy of a ListOps model by kind, on a large fresh test set and beyond trained lengths."""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from datamodules import ListOpsDataModule
from datamodules.batching import collate_tokens
from datamodules.listops import Expressions, generate_arrays
from datamodules.listops.expressions import CLOSE, OPERATORS, PAD, TOKEN_IDS, join
from msssm.errors import InputError
from tasks.cli.load import LoadedRun, load_run, run_arguments
from tasks.cli.parser import CommandParser
from tasks.listops.report_plot import report_plot
from tasks.listops.report_summary import write_summary
from tasks.listops.task import ListOpsTask
from tasks.metrics.intervals import wilson
from tasks.paths import path_option
from tasks.reports.markdown import table
from tasks.run.provenance import read_json, write_json

# Added to the data's own seed: no trained model has seen this stream.
SEED_OFFSET = 1_000_003
TOKENS_PER_BATCH = 100_000
EXAMPLES = """
msssm listops-report --run_dir runs/mine
msssm listops-report --results results/quick
"""


def main(args: list[str]) -> None:
    """Breaks the accuracy of a ListOps run down by root operator, depth and length, on fresh expressions.

    The expressions are of the run's own distribution, from another seed and without any of the training set. Then the
    same trees at lengths of 1 to 2 and 2 to 4 times the longest trained. Writes listops_report.json, .md and .png into
    the run's folder, and prints the table. With --results all runs of a folder, side by side.
    """
    parser = CommandParser("listops-report", main, EXAMPLES)
    run_arguments(parser)
    parser.add_argument(
        "--count", type=int, default=20_000, metavar="N", help="expressions; a tenth of it for each longer range"
    )
    parser.add_argument(
        "--results", type=path_option, metavar="FOLDER", help="all complete runs below it, in place of one run"
    )
    options, overrides = parser.parse_known_args(args)
    if options.count < 10:
        raise InputError(f"--count must be at least 10, got {options.count}")
    if options.results is None:
        print(markdown(report(load_run(options, overrides), options.count)))
        return
    for folder in sorted(path.parent for path in options.results.glob("runs/listops/*/seed*/metrics.json")):
        if not is_complete(folder, options.count):
            print(folder, flush=True)
            one = argparse.Namespace(run_dir=folder, config=None, ckpt_path=None)
            report(load_run(one, overrides), options.count)
    print(write_summary(options.results))


def is_complete(folder: Path, count: int) -> bool:
    """Whether a run has a report on this many expressions, of its present checkpoint."""
    path, checkpoint = folder / "listops_report.json", folder / "checkpoints/best.ckpt"
    if not path.exists() or (checkpoint.exists() and checkpoint.stat().st_mtime > path.stat().st_mtime):
        return False
    return bool(read_json(path)["lines"][0]["count"] == count)


def report(run: LoadedRun, count: int) -> list[dict[str, Any]]:
    """Computes the lines of one run, and writes them into its folder.

    Raises:
        ValueError: it is not a ListOps run.
    """
    data, task = run.datamodule, run.task
    if not (isinstance(data, ListOpsDataModule) and isinstance(task, ListOpsTask)):
        raise InputError(f"asked for a ListOps run, got {type(task).__name__} on {type(data).__name__}")
    data.prepare_data()
    data.setup("validate")
    train = data.train_dataloader().dataset.expressions  # type: ignore[attr-defined]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task.to(device)
    fresh = fresh_expressions(data, count, 1, train)
    right = answers(task, fresh, device) == fresh.labels
    parts = breakdown(fresh, right)
    for factor in (2, 4):
        low, high = data.parameters.max_length * factor // 2, data.parameters.max_length * factor
        try:
            longer = fresh_expressions(data, max(10, count // 10), factor, None)
        except InputError as error:  # trees of this depth and width do not grow so long
            print(f"msssm: no report on lengths {low} .. {high}: {error}", file=sys.stderr)
            continue
        parts.append(_line("beyond training", f"{low} .. {high}", answers(task, longer, device) == longer.labels))
    result = {"checkpoint": str(run.checkpoint), "seed": data.data_seed + SEED_OFFSET, "lines": parts}
    write_json(run.folder / "listops_report.json", result)
    (run.folder / "listops_report.md").write_text(markdown(parts))
    report_plot(run.folder / "listops_report.png", parts)
    return parts


def fresh_expressions(data: ListOpsDataModule, count: int, factor: int, train: Expressions | None) -> Expressions:
    """Generates distinct expressions from the data's distribution, none of them in `train`.

    Args:
        data: whose parameters and seed are used.
        count: number of expressions.
        factor: 1 for the trained lengths; else factor / 2 to factor times the longest of them.
        train: expressions to leave out.
    """
    trees = dict(vars(data.parameters))
    if factor > 1:
        trees |= {"min_length": trees["max_length"] * factor // 2, "max_length": trees["max_length"] * factor}
    known = set() if train is None else {train.key(i) for i in range(train.samples)}
    wanted = count
    while True:
        drawn = generate_arrays(wanted, seed=data.data_seed + SEED_OFFSET + factor, **trees)
        new = [i for i in range(drawn.samples) if drawn.key(i) not in known][:count]
        if len(new) == count:
            return join([drawn.row(i) for i in new], drawn.labels[new])
        if len(new) < count // 10:
            raise InputError(
                f"of {wanted} fresh expressions only {len(new)} are not in the training set; ask for a smaller --count"
            )
        wanted *= 2


@torch.no_grad()
def answers(task: ListOpsTask, expressions: Expressions, device: torch.device) -> npt.NDArray[np.int64]:
    """Predicts the value of each expression, (samples,)."""
    found = np.zeros(expressions.samples, dtype=np.int64)
    order = np.argsort(expressions.lengths, kind="stable")
    while len(order):
        size = max(1, TOKENS_PER_BATCH // int(expressions.lengths[order[-1]]))
        part, order = order[-size:], order[:-size]
        batch = collate_tokens([expressions.row(i) for i in part], expressions.labels[part], PAD)
        found[part] = task(batch.x.to(device), batch.lengths.to(device)).argmax(-1).cpu().numpy()
    return found


def depths(expressions: Expressions) -> npt.NDArray[np.int64]:
    """Number of operators around the deepest digit of each expression, (samples,)."""
    operators = np.isin(expressions.tokens, [TOKEN_IDS[name] for name in OPERATORS])
    open_brackets = np.cumsum(operators.astype(np.int64) - (expressions.tokens == TOKEN_IDS[CLOSE]))
    # Every expression closes what it opens: the running count is 0 between them.
    return np.maximum.reduceat(open_brackets, expressions.offsets[:-1])


def breakdown(expressions: Expressions, right: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Accuracies over all, by root operator, by depth, and by fifths of the length (in tokens)."""
    roots = expressions.tokens[expressions.offsets[:-1]]
    lines = [_line("all", "all", right)]
    lines += [_line("root operator", name.strip("["), right[roots == TOKEN_IDS[name]]) for name in OPERATORS]
    depth = depths(expressions)
    lines += [_line("depth", str(d), right[depth == d]) for d in np.unique(depth)]
    lengths = expressions.lengths
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, 6)).round().astype(np.int64))
    for low, high in itertools.pairwise(edges):
        last = high == edges[-1]
        inside = (lengths >= low) & ((lengths <= high) if last else (lengths < high))
        lines.append(_line("length in tokens", f"{low} .. {high if last else high - 1}", right[inside]))
    return [line for line in lines if line["count"]]


def _line(kind: str, name: str, right: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Accuracy with Wilson's 95 % interval."""
    count = len(right)
    accuracy = float(right.mean()) if count else 0.0
    low, high = wilson(accuracy, count) if count else (0.0, 1.0)
    return {"kind": kind, "name": name, "count": count, "accuracy": accuracy, "low": low, "high": high}


def markdown(lines: list[dict[str, Any]]) -> str:
    """Formats the lines as a table."""
    rows = [["by", "", "expressions", "accuracy, %", "95 % interval"]]
    for line in lines:
        accuracy, low, high = (f"{100 * line[key]:.1f}" for key in ("accuracy", "low", "high"))
        rows.append([line["kind"], line["name"], f"{line['count']:,}", accuracy, f"{low} .. {high}"])
    return "\n".join(table(rows, left=2)) + "\n"
