"""`msssm recipes`: the recipes and experiments that come with msssm: listed, shown, copied."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from msssm.errors import InputError
from tasks.cli.parser import CommandParser
from tasks.paths import make_folder, path_option
from tasks.table.files import EXPERIMENTS, recipe_file, recipes, table_file, tables
from tasks.table.spec import read_table, row_recipe, text

EXAMPLES = """
msssm recipes                        all of them
msssm recipes quick                  the tables and rows of an experiment
msssm recipes listops                a recipe; also quick/listops, a table
msssm recipes quick/listops/mamba    a row, as a complete recipe
msssm recipes listops --output mine.yaml && msssm fit --config mine.yaml
"""


def main(args: list[str]) -> None:
    """Lists, shows or copies the recipes and experiments that come with msssm.

    A recipe is all that a training needs: `msssm fit --config NAME`. An experiment is a folder of tables, one for each
    task, and each row of a table is a recipe too: `msssm experiment NAME`.

    Raises:
        InputError: there is nothing of that name, or the output exists.
    """
    parser = CommandParser("recipes", main, EXAMPLES)
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="of a recipe, an experiment, a table or a row; all by default"
    )
    parser.add_argument("--output", type=path_option, metavar="PATH", help="copy it to this new file, or new folder")
    options = parser.parse_args(args)
    if options.output is not None:
        _copy(options.name, options.output)
    elif options.name is None:
        print("\n".join(_overview()))
    elif options.name in _experiments():
        print("\n".join(_contents(options.name)))
    else:
        print(_read(options.name), end="")


def _experiments() -> list[str]:
    return list(dict.fromkeys(name.partition("/")[0] for name in tables()))


def _overview() -> Iterator[str]:
    yield "recipes: msssm fit --config NAME"
    yield from _listed({name: _about(recipe_file(name)) for name in recipes()})
    yield "\ntables of experiments: msssm experiment EXPERIMENT --tasks TASK"
    yield from _listed({name: _about(table_file(name)) for name in tables()})
    yield "\nmsssm recipes EXPERIMENT lists rows, which are recipes too, such as quick/listops/mamba"


def _contents(experiment: str) -> Iterator[str]:
    for name in tables():
        if name.startswith(f"{experiment}/"):
            table = read_table(table_file(name))
            yield from textwrap.wrap(f"{name}: {_about(table.path)}", _columns())
            yield from _listed({f"{name}/{row.name}": row.label for row in table.rows.values()})
            yield ""


def _listed(entries: Mapping[str, str]) -> Iterator[str]:
    width = max(map(len, entries)) + 2
    for name, about in entries.items():
        yield from textwrap.wrap(f"  {name:<{width}}{about}", _columns(), subsequent_indent=" " * (width + 2))


def _columns() -> int:
    return max(60, shutil.get_terminal_size().columns)


def _about(path: Path) -> str:
    """The first line of a file's header."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").removesuffix(".")


def _read(name: str) -> str:
    """The file of a recipe or a table, or the complete recipe of a row."""
    if name in recipes():
        return recipe_file(name).read_text(encoding="utf-8")
    if name in tables():
        return table_file(name).read_text(encoding="utf-8")
    if name.rpartition("/")[0] in tables():
        return text(row_recipe(name))
    raise InputError(
        f"there is no recipe or experiment {name!r}; there are {', '.join([*recipes(), *_experiments(), *tables()])}, "
        "and rows such as quick/listops/mamba"
    )


def _copy(name: str | None, output: Path) -> None:
    if name is None:
        raise InputError(
            "--output copies one recipe or experiment; name it, as in msssm recipes listops --output x.yaml"
        )
    if output.exists():
        raise InputError(f"{output} exists; choose another --output or delete it")
    if name in _experiments():
        make_folder(output.parent)
        shutil.copytree(EXPERIMENTS / name, output, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        content = _read(name)
        make_folder(output.parent)
        output.write_text(content, encoding="utf-8")
    print(output)
