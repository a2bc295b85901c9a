"""Options of an unfinished run that may change when it is resumed."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.callbacks import Callback, ModelSummary, ProgressBar

from msssm.paths import local_path
from tasks.recipes.parser import class_of

# Names, as regular expressions, and why. The result does not depend on the first, bit by bit.
FREE = (
    (r"data\.init_args\.num_workers", "a batch is a function of the seed and of its number"),
    (r"data\.init_args\.predict_file", "not read in a training"),
    (r"trainer\.log_every_n_steps", "how dense the curves of the training are"),
    (r"trainer\.(enable_progress_bar|enable_model_summary|profiler)(\..*)?", "what is shown"),
    (r"trainer\.num_sanity_val_steps", "before the first step, with random numbers of their own"),
    (r"trainer\.detect_anomaly", "how errors of the backward are reported"),
    (r"skip_test", "after the last step"),
)
# On these, it depends by rounding and by the dropout masks, since each process draws its own.
CLOSE = (
    (
        r"trainer\.(accelerator|devices|num_nodes|strategy)",
        "the same batches in the same order, but other rounding and fresh dropout masks",
    ),
)
# The change that is wanted most often, and why it is refused.
LENGTH = (
    "the learning rate falls to 0 at the end of the training, so the steps so far are those of another schedule; to "
    "train on from its weights nevertheless, continue in a new folder: --run_dir NEW --ckpt_path {last}"
)
_OWN = re.compile(r"config|ckpt_path|run_dir|checkpoint\.dirpath")
_PATHS = re.compile(r"data\.init_args\.(root|source|tsv_dir)")
_LENGTH = re.compile(r"trainer\.max_(epochs|steps)")


class Changes(NamedTuple):
    """Options of a resumed run that differ, each with its old and new value, except those without effect.

    `close` ones change the result by rounding and dropout masks; with `refused` ones it would be another run.
    """

    close: dict[str, str]
    refused: dict[str, str]


def changes(saved: Any, asked: Any, last: Path) -> Changes:
    """Compares two resolved recipes.

    Args:
        saved: Recipe of the unfinished run.
        asked: Recipe of the present command.
        last: the run's last checkpoint, for messages.
    """
    ours, theirs = _leaves(_without_bars(asked)), _leaves(_without_bars(saved))
    close: dict[str, str] = {}
    refused: dict[str, str] = {}
    for name in sorted(ours.keys() | theirs.keys()):
        before, now = theirs.get(name), ours.get(name)
        if before == now or _OWN.fullmatch(name) or (_PATHS.fullmatch(name) and _same_place(before, now)):
            continue
        change = f"{name} was {before!r}, is {now!r}"
        if reason := _reason(name, CLOSE):
            close[name] = f"{change}: {reason}"
        elif _LENGTH.fullmatch(name):
            refused[name] = f"{change}: {LENGTH.format(last=last)}"
        elif not _reason(name, FREE):
            refused[name] = change
    return Changes(close, refused)


def is_recipe(content: Any) -> bool:
    """Whether the content of a config.yaml can be compared by `changes`."""
    return isinstance(content, dict) and all(isinstance(content.get(part), dict) for part in ("model", "trainer"))


def _reason(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    return next((reason for pattern, reason in table if re.fullmatch(pattern, name)), None)


def _same_place(a: Any, b: Any) -> bool:
    return isinstance(a, str) and isinstance(b, str) and local_path(a).resolve() == local_path(b).resolve()


def _without_bars(recipe: Any) -> Any:
    """The recipe without callbacks that only display something."""
    trainer = dict(recipe["trainer"])
    given = trainer.get("callbacks") or []
    given = [each for each in (given if isinstance(given, list) else [given]) if not _shows(each)]
    return {**recipe, "trainer": {**trainer, "callbacks": given}}


def _shows(callback: Any) -> bool:
    cls = class_of(callback["class_path"] if isinstance(callback, dict) else str(callback))
    return cls is not None and issubclass(cls, Callback) and issubclass(cls, ProgressBar | ModelSummary)


def _leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens a nested config to {"data.init_args.root": "data", ...}."""
    if not isinstance(config, dict):
        return {prefix: config}
    return {
        key: leaf
        for name, value in config.items()
        for key, leaf in _leaves(value, f"{prefix}.{name}" if prefix else name).items()
    }
