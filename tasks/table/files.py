"""Recipes and experiments by name, in the checkout or in the installed package."""

from pathlib import Path

from msssm.errors import InputError, MissingFileError
from msssm.paths import local_path

CONFIGS = Path(__file__).parents[2] / "configs"
EXPERIMENTS = CONFIGS / "experiments"


def recipes() -> list[str]:
    """Names of the recipes that are complete by themselves, such as `listops`."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def tables() -> list[str]:
    """Names of all tables, such as `quick/listops`."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in EXPERIMENTS.glob("*/*.yaml"))


def recipe_file(name: str) -> Path:
    """The file of a recipe.

    Raises:
        InputError: there is none of that name.
    """
    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        raise MissingFileError(f"there is no recipe {name!r}; there are {', '.join(recipes())}")
    return path


def table_file(name: str) -> Path:
    """The file of a table, `EXPERIMENT/TASK`.

    Raises:
        InputError: there is none of that name.
    """
    experiment, _, task = name.rpartition("/")
    [path] = experiment_files(experiment, [task])
    return path


def experiment_files(experiment: str, tasks: list[str] | None = None) -> list[Path]:
    """Locates the files of an experiment, one per task.

    Args:
        experiment: a name, such as `quick`, or the path of a folder of tables.
        tasks: those that are wanted; all by default.

    Raises:
        InputError: there is no such experiment, or it has no such task.
    """
    folder = EXPERIMENTS / experiment
    if not experiment or not folder.is_dir():
        folder = local_path(experiment or ".")
    found = {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder.is_dir() and experiment else {}
    if not found:
        names = sorted({name.partition("/")[0] for name in tables()})
        raise InputError(f"there is no experiment {experiment!r}; there are {', '.join(names)}, and folders of tables")
    for task in tasks or []:
        if task not in found:
            raise InputError(f"the experiment {experiment} has no task {task!r}; it has {', '.join(found)}")
    return [found[task] for task in tasks or found]
