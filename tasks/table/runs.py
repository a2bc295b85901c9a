"""Complete runs on disk: `<folder>/runs/<task>/<row>/seed<k>`, with the recipe and what it measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from msssm.errors import InputError
from tasks.run.provenance import read_json


@dataclass(frozen=True)
class Run:
    """Complete run: its row, folder, measurements (`metrics.json`) and resolved recipe."""

    row: str
    folder: Path
    metrics: dict[str, Any]
    recipe: dict[str, Any]

    @property
    def data(self) -> dict[str, Any]:
        """Options of the data module."""
        return self.recipe["data"]["init_args"]

    @property
    def counts(self) -> dict[str, int]:
        """Samples of train, val and test."""
        return self.metrics["data"]["counts"]

    def budget(self) -> dict[str, Any]:
        """Properties that runs of one table have in common: the data, and how much of it a training sees."""
        return {
            "data digest": self.metrics["data"]["digest"][:12],
            "steps": self.metrics["steps"],
            "batch size": self.data["batch_size"],
        }


def read_runs(folder: Path, task: str) -> list[Run]:
    """Reads all complete runs below `<folder>/runs/<task>`, ordered by name; there may be none.

    Runs without a test (`--skip_test`) are left out.

    Raises:
        ValueError: one cannot be read, or they differ in a property that a table holds equal.
    """
    runs = []
    for path in sorted(folder.glob(f"runs/{task}/*/seed*/metrics.json")):
        try:
            metrics = read_json(path)
            if not metrics["test"]:
                continue
            recipe = yaml.safe_load((path.parent / "config.yaml").read_text())
            runs.append(Run(path.parent.parent.name, path.parent, metrics, recipe))
            runs[-1].budget()
        except (InputError, UnicodeDecodeError, KeyError, TypeError, yaml.YAMLError, OSError) as error:
            raise InputError(f"the run {path.parent} is damaged ({error!r}); delete it and train it again") from error
    for run in runs:
        if run.budget() != runs[0].budget():
            raise InputError(
                f"runs of one table must agree in {', '.join(runs[0].budget())}; {run.folder} has {run.budget()}, "
                f"{runs[0].folder} has {runs[0].budget()}: delete the one of the older recipe"
            )
    return runs
