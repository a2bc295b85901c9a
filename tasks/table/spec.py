"""A table as data: a base recipe, and rows that differ from it in what their entries say and in nothing else."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from msssm.errors import InputError
from tasks.recipes.files import read_yaml
from tasks.table.files import recipe_file, table_file

Tree = dict[str, Any]
Number = float | dict[str, float]  # of the paper, or one for each of its columns


@dataclass(frozen=True)
class Row:
    """One network of a table.

    Attributes:
        name: folder of its runs.
        label: what the table calls it.
        paper: the paper's number for it.
        options: over the table's base, by their names on the command line of `msssm fit`.
    """

    name: str
    label: str
    paper: Number | None = None
    options: Tree = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The rows of one task.

    Attributes:
        path: of its file.
        base: recipe of every row.
        rows: by name, in the paper's order.
        quoted: numbers of models that the paper compares with and that we do not train, by label.
        compare: row that the others are shown as differences to; empty if there is none.
        seeds: of a run that asks for no others.
        threads: of each training; None for all that there are.
        budget: options that shorten the training on the table's own base.
        reduced: what is less than the paper's although the data are its own; beside every number of ours.
    """

    path: Path
    base: Tree
    rows: dict[str, Row]
    quoted: dict[str, Number] = field(default_factory=dict)
    compare: str = ""
    seeds: tuple[int, ...] = (0,)
    threads: int | None = None
    budget: Tree = field(default_factory=dict)
    reduced: str = ""

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.path.stem

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return self.path.parent.name

    def recipe(self, row: str) -> Tree:
        """The complete recipe of a row, its interpolations as they are written.

        Raises:
            InputError: there is no such row.
        """
        if row not in self.rows:
            raise InputError(f"{self.experiment}/{self.task} has no row {row!r}; it has {', '.join(self.rows)}")
        place = {"seed_everything": 0, "run_dir": f"runs/{self.experiment}/{self.task}/{row}/seed${{seed_everything}}"}
        return place | with_options(with_options(self.base, self.budget), self.rows[row].options)

    def of(self, experiment: str) -> "Table":
        """Replaces the base by that of the same task in another experiment, with its budget."""
        other = read_table(table_file(f"{experiment}/{self.task}"))
        return replace(
            self, base=with_options(other.base, other.budget), budget={}, threads=other.threads, reduced=other.reduced
        )


def with_options(recipe: Tree, options: Mapping[str, Any]) -> Tree:
    """Copies a recipe, with options such as `model.backbone.d_model` replaced."""
    changed = deepcopy(recipe)
    for name, value in options.items():
        *path, last = name.split(".")
        node = changed
        for part in path:
            node = _inside(node).setdefault(part, {})
        _inside(node)[last] = deepcopy(value)
    return changed


def _inside(node: Tree) -> Tree:
    """The options of a node, which for a class are in its `init_args`."""
    return node.setdefault("init_args", {}) if "class_path" in node else node


def read_table(path: Path, within: tuple[Path, ...] = ()) -> Table:
    """Reads the table of a file.

    Args:
        path: of the file.
        within: tables that refer to it, one to the next.

    Raises:
        InputError: naming the file, the row and the key that is wrong.
    """
    if path in within:
        raise InputError("the tables refer to each other in a circle")
    return _Reader(path, within).table()


class _Reader:
    """Reader of one file, which reports every fault with its place."""

    KINDS: Mapping[str, tuple[type, ...]] = {
        "base": (str, dict),
        "options": (dict,),
        "budget": (dict,),
        "rows": (str, dict),
        "reference": (str,),
        "quoted": (dict,),
        "compare": (str,),
        "seeds": (list,),
        "threads": (int,),
        "reduced": (str,),
    }
    ROW: Mapping[str, tuple[type, ...]] = {"label": (str,), "paper": (int, float, dict), "options": (dict,)}

    def __init__(self, path: Path, within: tuple[Path, ...]) -> None:
        self.path, self.within = path, (*within, path)
        self.content = read_yaml(path, "experiment")
        self._check("", self.content, self.KINDS)
        reference = self.content.get("reference")
        self.reference = None if reference is None else self._other("reference", reference)

    def table(self) -> Table:
        for name in ("base", "rows"):
            if name not in self.content:
                raise self._error(f"{name} is missing")
        content, base, threads = self.content, self.content["base"], self.content.get("threads")
        if isinstance(base, str):
            base = self._base(base)
        rows = self._rows(content["rows"])
        compare, seeds = content.get("compare", ""), content.get("seeds", [0])
        if compare and compare not in rows:
            raise self._error(f"compare: there is no row {compare!r}; there are {', '.join(rows)}")
        if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
            raise self._error(f"seeds must be whole numbers from 0, got {seeds}")
        if threads is not None and threads < 1:
            raise self._error(f"threads must be at least 1, got {threads}")
        for label, number in content.get("quoted", {}).items():
            self._check_number(f"quoted, {label}", number)
        return Table(
            path=self.path,
            base=self._applied("options", base, content.get("options", {})),
            rows=rows,
            quoted=content.get("quoted", self.reference.quoted if self.reference else {}),
            compare=compare,
            seeds=tuple(seeds),
            threads=threads,
            budget=content.get("budget", {}),
            reduced=content.get("reduced", ""),
        )

    def _base(self, name: str) -> Tree:
        """Another table's, or that of a recipe."""
        if "/" in name:
            return self._other("base", name).base
        try:
            recipe = read_yaml(recipe_file(name))
        except InputError as error:
            raise self._error(f"base: {error}") from error
        return {key: value for key, value in recipe.items() if key not in ("seed_everything", "run_dir")}

    def _rows(self, given: str | Tree) -> dict[str, Row]:
        if isinstance(given, str):
            return self._other("rows", given).rows
        return {str(name): self._row(str(name), entry) for name, entry in given.items()}

    def _row(self, name: str, entry: Any) -> Row:
        entry = {} if entry is None else entry
        if not isinstance(entry, dict):
            raise self._error(f"row {name} must be a mapping with {', '.join(self.ROW)}, got {entry!r}")
        self._check(f"row {name}: ", entry, self.ROW)
        known = self.reference.rows.get(name) if self.reference else None
        label = entry.get("label", known.label if known else None)
        if label is None:
            raise self._error(f"row {name}: label is missing")
        paper = entry.get("paper", known.paper if known else None)
        self._check_number(f"row {name}: paper", paper)
        options = entry.get("options", {})
        self._applied(f"row {name}: options", {}, options)
        return Row(name, label, paper, options)

    def _other(self, key: str, name: str) -> Table:
        try:
            return read_table(table_file(name), self.within)
        except InputError as error:
            raise self._error(f"{key}: {error}") from error

    def _applied(self, where: str, recipe: Tree, options: Tree) -> Tree:
        for name in options:
            if not isinstance(name, str) or "." not in name or not all(name.split(".")):
                raise self._error(f"{where}: {name!r} is not the name of an option, as model.backbone.d_model is")
        return with_options(recipe, options)

    def _check(self, where: str, content: Tree, kinds: Mapping[str, tuple[type, ...]]) -> None:
        for key, value in content.items():
            if key not in kinds:
                raise self._error(f"{where}there is no key {key!r}; there are {', '.join(kinds)}")
            if not isinstance(value, kinds[key]) or isinstance(value, bool):
                wanted = " or ".join(kind.__name__ for kind in kinds[key])
                raise self._error(f"{where}{key} must be {wanted}, got {value!r}")

    def _check_number(self, where: str, value: Any) -> None:
        numbers = value.values() if isinstance(value, dict) else [value]
        if value is not None and not all(type(number) in (int, float) for number in numbers):
            raise self._error(f"{where} must be a number, or one for each column of the paper, got {value!r}")

    def _error(self, message: str) -> InputError:
        return InputError(f"{self.path}: {message}")


def text(recipe: Tree) -> str:
    """Formats a recipe as YAML, in its own order."""
    return yaml.safe_dump(recipe, sort_keys=False)
