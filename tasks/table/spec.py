"""A table as data: a base recipe, rows that differ from it in their options alone, and the metric that is shown."""

import atexit
import shutil
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import yaml

from msssm.errors import InputError, MissingFileError
from msssm.paths import local_path
from tasks.recipes.files import read_yaml
from tasks.table.files import recipe_file, recipes, table_file, tables

Tree = dict[str, Any]
Number = float | dict[str, float]  # of the paper, or one for each of its columns


@dataclass(frozen=True)
class Column:
    """The metric of a table, how it is shown, and what stands beside it.

    Texts may have fields of a run: `{data.max_length}`, an option or a statistic of its data, and entries of its
    metrics.json, such as `{steps}`.

    Attributes:
        metric: Logged metric of the test.
        name: Name of the metric in headers.
        unit: Unit in headers; `%` shows the metric hundredfold.
        direction: Which is better, `higher` or `lower`.
        digits: Decimals.
        range: Least and greatest value, which an interval over seeds does not pass.
        interval: 95 % interval of one run: `wilson`, of a share of the test samples, or its place in metrics.json.
        over: What that interval is over.
        data: Name of the data in the header.
        samples: Samples of train, val and test; the header says where a run has others.
        about: Description of the data.
        training: Description of the training; by default its steps and their samples.
        bound: Trivial answer, and its value.
        paper: Name of the paper's data; empty if it has none.
        paper_digits: Decimals of the paper's numbers.
        paper_column: Which of a row's several numbers in the paper is on these data.
    """

    metric: str = "test/accuracy"
    name: str = "accuracy"
    unit: str = "%"
    direction: str = "higher"
    digits: int = 1
    range: tuple[float, float] | None = (0, 1)
    interval: str = "wilson"
    over: str = "over the test samples"
    data: str = ""
    samples: tuple[int, ...] = ()
    about: str = ""
    training: str = ""
    bound: dict[str, float | str] = field(default_factory=dict)
    paper: str = ""
    paper_digits: int = 1
    paper_column: str = ""

    @property
    def scale(self) -> int:
        """Factor between the logged value and the one that is shown."""
        return 100 if self.unit == "%" else 1

    @property
    def measure(self) -> str:
        """Name and unit, in front of `on ...`."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def show(self, value: float) -> str:
        """Formats a value."""
        return f"{self.scale * value:.{self.digits}f}"


# A table with a metric of its own starts from these.
ANY_METRIC = Column(unit="", digits=3, range=None, interval="", over="")


@dataclass(frozen=True)
class Row:
    """One network of a table.

    Attributes:
        name: Folder of its runs.
        label: Name in the table.
        paper: The paper's number for it.
        options: Options over the table's base, by their names on the command line of `msssm fit`.
    """

    name: str
    label: str
    paper: Number | None = None
    options: Tree = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The rows of one task.

    Attributes:
        path: Its file.
        base: Recipe of every row.
        rows: Rows by name, in the paper's order.
        column: Metric of the table.
        quoted: The paper's numbers of models that we do not train, by label.
        compare: Row that the others are shown as differences to; empty if there is none.
        seeds: Seeds of an experiment that names no others.
        threads: Threads of each training; None for all that there are.
        budget: Options that shorten the training on the table's own base.
        reduced: What is less than the paper's although the data are its own; it may have fields as a column's texts.
    """

    path: Path
    base: Tree = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    column: Column = field(default_factory=Column)
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
        """Replaces the base by that of the same task in another experiment, with what is said of its data."""
        other = read_table(table_file(f"{experiment}/{self.task}"))
        base = with_options(other.base, other.budget)
        return replace(self, base=base, budget={}, threads=other.threads, reduced=other.reduced, column=other.column)


def with_options(recipe: Tree, options: Mapping[str, Any]) -> Tree:
    """Copies a recipe, with options such as `model.backbone.d_model` replaced."""
    changed = deepcopy(recipe)
    for name, value in options.items():
        *path, last = name.split(".")
        node = changed
        for part in path:
            node = inside(node).setdefault(part, {})
        inside(node)[last] = deepcopy(value)
    return changed


def inside(node: Tree) -> Tree:
    """The options of a node, which for a class are in its `init_args`."""
    return node.setdefault("init_args", {}) if "class_path" in node else node


def differences(base: Any, other: Any, name: str = "") -> Tree:
    """Options that turn one recipe into another; a class of another kind is replaced as a whole."""
    if not isinstance(base, dict) or not isinstance(other, dict) or base.get("class_path") != other.get("class_path"):
        return {} if base == other else {name: other}
    found: Tree = {}
    ours, theirs = inside(base), inside(other)
    for key, value in theirs.items():
        option = f"{name}.{key}" if name else key
        found |= differences(ours[key], value, option) if key in ours else {option: value}
    return found


def read_table(path: Path, within: tuple[Path, ...] = ()) -> Table:
    """Reads the table of a file.

    Args:
        path: The file.
        within: Tables that refer to it, one to the next.

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
        "column": (dict,),
        "reference": (str,),
        "quoted": (dict,),
        "compare": (str,),
        "seeds": (list,),
        "threads": (int,),
        "reduced": (str,),
    }
    ROW: Mapping[str, tuple[type, ...]] = {"label": (str,), "paper": (int, float, dict), "options": (dict,)}
    COLUMN: Mapping[str, tuple[type, ...]] = {
        each.name: (list,) if isinstance(each.default, tuple) else (type(each.default),)
        for each in fields(Column)
        if each.name != "bound"
    } | {"bound": (dict,)}

    def __init__(self, path: Path, within: tuple[Path, ...]) -> None:
        self.path, self.within = path, (*within, path)
        self.content = read_yaml(path, "experiment")
        self._check("", self.content, self.KINDS)

    def table(self) -> Table:
        content = self.content
        for name in ("base", "rows"):
            if name not in content:
                raise self._error(f"{name} is missing")
        reference = self._other("reference", content["reference"]) if "reference" in content else None
        other = self._other("base", content["base"]) if "/" in content["base"] else None
        base = other.base if other else self._base(content["base"])
        rows = content["rows"]
        if isinstance(rows, str):
            rows = self._other("rows", rows).rows
        else:
            rows = {str(name): self._row(str(name), entry or {}, reference) for name, entry in rows.items()}
        compare, seeds, threads = content.get("compare", ""), content.get("seeds", [0]), content.get("threads")
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
            column=self._column(reference or other),
            quoted=content.get("quoted", reference.quoted if reference else {}),
            compare=compare,
            seeds=tuple(seeds),
            threads=threads,
            budget=content.get("budget", {}),
            reduced=content.get("reduced", ""),
        )

    def _base(self, base: str | Tree) -> Tree:
        """The recipe that is written here, or that of a name."""
        if isinstance(base, dict):
            return base
        try:
            recipe = read_yaml(recipe_file(base))
        except InputError as error:
            raise self._error(f"base: {error}") from error
        return {key: value for key, value in recipe.items() if key not in ("seed_everything", "run_dir")}

    def _column(self, other: Table | None) -> Column:
        """What the file says over the column of the table that it refers to; a metric of its own starts anew."""
        given = self.content.get("column", {})
        self._check("column: ", given, self.COLUMN)
        if given.get("direction", "higher") not in ("higher", "lower"):
            raise self._error(f"column: direction must be higher or lower, got {given['direction']!r}")
        values: Tree = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        if len(values.get("range", (0, 1))) != 2:
            raise self._error(f"column: range must be the least and the greatest value, got {given['range']}")
        if "metric" in given and given["metric"] != Column.metric:
            return replace(ANY_METRIC, **{"name": given["metric"].rpartition("/")[2], **values})
        return replace(other.column if other else Column(), **values)

    def _row(self, name: str, entry: Any, reference: Table | None) -> Row:
        if not isinstance(entry, dict):
            raise self._error(f"row {name} must be a mapping with {', '.join(self.ROW)}, got {entry!r}")
        self._check(f"row {name}: ", entry, self.ROW)
        known = reference.rows.get(name) if reference else None
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
    return yaml.safe_dump(recipe, sort_keys=False, width=120)


def named_recipe(word: str) -> Path:
    """Locates the file of a path, of a recipe's name (`listops`), or of a row's (`quick/listops/mamba`).

    Raises:
        InputError: it is none of them.
    """
    path = local_path(word)
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    if word in recipes():
        return recipe_file(word)
    if word.rpartition("/")[0] not in tables():
        raise MissingFileError(
            f"asked for the recipe {word}, got no such file, and none of that name: there are {', '.join(recipes())}, "
            f"and rows of {', '.join(tables())}, such as quick/listops/msssm_s6"
        )
    folder = Path(mkdtemp(prefix="msssm-"))  # exists as long as this process
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "recipe.yaml"
    path.write_text(text(row_recipe(word)))
    return path


def row_recipe(name: str) -> Tree:
    """The complete recipe of a row, such as `quick/listops/mamba`.

    Raises:
        InputError: there is no such table or row.
    """
    table, _, row = name.rpartition("/")
    return read_table(table_file(table)).recipe(row)
