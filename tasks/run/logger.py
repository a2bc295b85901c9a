"""TensorBoard events of a run, with hyperparameters under the names of their options."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger


class RunLogger(TensorBoardLogger):
    """Writes `backbone.layer.levels`, as on the command line, for `backbone/init_args/layer/init_args/levels`."""

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, metrics: dict[str, Any] | None = None, step: int | None = None
    ) -> None:
        """Logs the options of a task, and `task` itself, with the metrics that they led to."""
        super().log_hyperparams(option_names(params if isinstance(params, dict) else vars(params)), metrics, step)


def option_names(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens the hyperparameters of a task that LightningCLI has built; a class has the name of its option."""
    found: dict[str, Any] = {}
    for key, value in params.items():
        name = prefix + {"_class_path": "task"}.get(key, key)
        if isinstance(value, Mapping) and "class_path" in value:
            found[name] = value["class_path"]
            value = value.get("init_args") or {}
        if isinstance(value, Mapping):
            found |= option_names(value, f"{name}.")
        elif key != "_instantiator":
            found[name] = value
    return found
