"""Packages whose classes a recipe may name: ours, and those that the user opens."""

import argparse
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from jsonargparse import set_parsing_settings

from msssm.errors import InputError

OURS = ("msssm", "datamodules", "tasks", "lightning.pytorch", "torch.nn")
GROUP = "msssm.plugins"  # entry points, whose values are names of packages


def open_plugins(words: list[str]) -> list[str]:
    """Opens the packages of `--plugins` and of installed entry points to recipes; returns the other words.

    Anything else that can be imported stays closed to a recipe from elsewhere, which cannot open a package by itself.

    Raises:
        InputError: there is no such package here.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--plugins", nargs="+", action="extend", default=[])
    given, rest = parser.parse_known_args(words)
    if given.plugins and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that nothing there takes the place of an installed package
    for name in given.plugins:
        if not _exists(name):
            raise InputError(f"--plugins {name}: there is no package or module {name} in {Path.cwd()}, or installed")
    installed = [entry.value for entry in entry_points(group=GROUP)]
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*OURS, *installed, *given.plugins])
    return rest


def _exists(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # of the package around it
        return False
