"""The front door of the `msssm` command: it finds its own packages first, whatever the working folder calls `tasks`."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

HOME = str(Path(__file__).parent)
PACKAGES = ("msssm", "datamodules", "tasks")


class _OwnPackages:
    """Finds our packages beside this file. It stands before the search of `sys.path`, where PYTHONPATH comes first."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [HOME]) if name in PACKAGES else None


def main() -> None:
    """Runs the command."""
    sys.meta_path.insert(0, _OwnPackages)
    from tasks.cli.main import main

    main()


if __name__ == "__main__":
    main()
