"""Accuracy of ListOps models by root operator, depth and length, on fresh expressions and beyond trained lengths."""

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib import pyplot as plt

from datamodules import ListOpsDataModule
from datamodules.batching import collate_tokens
from datamodules.listops import Expressions, generate_arrays
from datamodules.listops.expressions import CLOSE, OPERATORS, PAD, TOKEN_IDS, join
from msssm.errors import InputError
from tasks.listops.task import ListOpsTask
from tasks.messages import say
from tasks.reports import markdown, style

# Added to the data's own seed: no trained model has seen this stream.
SEED_OFFSET = 1_000_003
TOKENS_PER_BATCH = 100_000


def report(task: ListOpsTask, data: ListOpsDataModule, count: int) -> pd.DataFrame:
    """Measures one model on expressions of its own data's distribution, without any of the training set.

    Then on the same trees at lengths of 1 to 2 and 2 to 4 times the longest trained, a tenth as many each.

    Returns:
        A line for each part: kind, name, count, accuracy.
    """
    data.prepare_data()
    data.setup("validate")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task.to(device)
    fresh = fresh_expressions(data, count, 1, data.split("train").expressions)
    parts = [breakdown(fresh, answers(task, fresh, device) == fresh.labels)]
    for factor in (2, 4):
        lengths = f"{data.parameters.max_length * factor // 2} .. {data.parameters.max_length * factor}"
        try:
            longer = fresh_expressions(data, max(10, count // 10), factor, None)
        except InputError as error:  # trees of this depth and width do not grow so long
            say(f"no report on lengths {lengths}: {error}")
            continue
        parts.append(_lines("beyond training", {lengths: answers(task, longer, device) == longer.labels}))
    return pd.concat(parts, ignore_index=True)


def fresh_expressions(data: ListOpsDataModule, count: int, factor: int, train: Expressions | None) -> Expressions:
    """Generates distinct expressions from the data's distribution, none of them in `train`.

    Args:
        data: Data module whose parameters and seed are used.
        count: Number of expressions.
        factor: 1 for the trained lengths; else factor / 2 to factor times the longest of them.
        train: Expressions to leave out.
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


def breakdown(expressions: Expressions, right: npt.NDArray[np.bool_]) -> pd.DataFrame:
    """Accuracies over all, by root operator, by depth, and by fifths of the length (in tokens)."""
    roots, depth, lengths = expressions.tokens[expressions.offsets[:-1]], depths(expressions), expressions.lengths
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, 6)).round().astype(np.int64))
    fifths = {}
    for low, high in itertools.pairwise(edges):
        high += high == edges[-1]
        fifths[f"{low} .. {high - 1}"] = right[(lengths >= low) & (lengths < high)]
    return pd.concat(
        [
            _lines("all", {"all": right}),
            _lines("root operator", {name.strip("["): right[roots == TOKEN_IDS[name]] for name in OPERATORS}),
            _lines("depth", {str(d): right[depth == d] for d in np.unique(depth)}),
            _lines("length in tokens", fifths),
        ]
    )


def _lines(kind: str, parts: dict[str, npt.NDArray[np.bool_]]) -> pd.DataFrame:
    lines = [(kind, name, len(right), float(right.mean())) for name, right in parts.items() if len(right)]
    return pd.DataFrame(lines, columns=["kind", "name", "count", "accuracy"])


def averaged(reports: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds of each model, the best first.

    Args:
        reports: Lines of all runs, with model and seed.

    Returns:
        Lines with model, seeds, accuracy and its standard error over the expressions, sqrt(p (1 - p) / n).

    Raises:
        InputError: the runs were measured on different expressions.
    """
    counts = reports.groupby(["kind", "name"], sort=False)["count"]
    if counts.nunique().max() > 1 or counts.size().nunique() > 1:
        raise InputError("the runs have reports on different expressions; delete their listops_report.csv, and repeat")
    mean = reports.groupby(["model", "kind", "name", "count"], sort=False, as_index=False).agg(
        seeds=("accuracy", "size"), accuracy=("accuracy", "mean")
    )
    mean["error"] = np.sqrt(mean.accuracy * (1 - mean.accuracy) / mean["count"])
    order = mean[mean.kind == "all"].sort_values("accuracy", ascending=False).model.tolist()
    return mean.sort_values("model", key=lambda model: model.map(order.index), kind="stable")


def write(folder: Path, reports: pd.DataFrame) -> str:
    """Writes listops_report.csv, .md and .png into a folder; returns the Markdown."""
    lines = averaged(reports)
    reports.round(6).to_csv(folder / "listops_report.csv", index=False)
    _plot(folder / "listops_report.png", lines)
    parts = [
        "# ListOps: fresh expressions that no run has seen",
        "",
        "Accuracy in % with its standard error over the expressions; of several seeds the mean, with the error of one.",
    ]
    lines["head"] = [f"{name} (n = {count:,})" for name, count in zip(lines["name"], lines["count"], strict=True)]
    lines["cell"] = [f"{100 * p:.1f} +- {100 * e:.1f}" for p, e in zip(lines.accuracy, lines.error, strict=True)]
    for kind, part in lines.groupby("kind", sort=False):
        heads = list(dict.fromkeys(part["head"]))
        rows = [
            [str(model), str(own.seeds.iloc[0]), *own.set_index("head").cell[heads]]
            for model, own in part.groupby("model", sort=False)
        ]
        title = "Over all" if kind == "all" else str(kind).capitalize()
        parts += ["", f"## {title}", "", *markdown.table([["model", "seeds", *heads], *rows])]
    text = "\n".join(parts) + "\n"
    (folder / "listops_report.md").write_text(text)
    return text


@style.styled
def _plot(path: Path, lines: pd.DataFrame) -> None:
    """Draws one panel per kind of expression, a line per model with standard errors."""
    kinds = [kind for kind in lines.kind.unique() if kind != "all"]
    figure, axes = plt.subplots(1, len(kinds), figsize=(4 * len(kinds), 4.5), sharey=True, layout="constrained")
    for ax, kind in zip(axes, kinds, strict=True):
        for model, own in lines[lines.kind == kind].groupby("model", sort=False):
            ax.errorbar(own["name"], 100 * own.accuracy, yerr=100 * own.error, marker="o", capsize=2, label=model)
        ax.tick_params("x", rotation=30, labelsize=8)
        ax.set_title(kind)
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("accuracy on fresh expressions, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path)
    plt.close(figure)
