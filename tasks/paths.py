"""Paths among the options of a command."""

import argparse
import re
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from msssm.errors import InputError
from msssm.paths import local_path

PATHS = ("run_dir", "ckpt_path", "record", "output")  # among the options of a recipe; data modules know their own


def path_option(text: str) -> Path:
    """Converts an argument by `local_path`, as a type for argparse."""
    try:
        return local_path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def expand(recipe: Namespace) -> None:
    """Normalises the paths of a recipe, before anything is read or written there.

    Those of Lightning's classes, such as a logger's save_dir, are recognised by their beginning: each class would
    expand them in its own way, or not at all.
    """
    for name, value in list(recipe.items()):
        if value is None:
            continue
        recipe[name] = str(local_path(value)) if name in PATHS else _expanded(value)


def _expanded(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(each) for each in value]
    if isinstance(value, dict | Namespace):
        for name, each in list(value.items()):
            value[name] = _expanded(each)
        return value
    return str(local_path(value)) if isinstance(value, str) and re.match(r"~\w*/|\$\w+(/|$)", value) else value


def make_folder(path: Path) -> Path:
    """Creates a folder and all its parents, and returns it.

    Raises:
        InputError: there is a file in its place, or in that of a parent.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{path} cannot be a folder: there is a file in its place; name another one") from error
    return path
