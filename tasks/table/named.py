"""Recipes that `--config` can name: a file, a recipe, or a row of a table."""

import atexit
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from msssm.errors import MissingFileError
from msssm.paths import local_path
from tasks.table.files import recipe_file, recipes, table_file, tables
from tasks.table.spec import read_table, text


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
    if word.rpartition("/")[0] in tables():
        return _written(text(row_recipe(word)))
    raise MissingFileError(
        f"asked for the recipe {word}, got no such file, and none of that name: there are {', '.join(recipes())}, and "
        f"rows of {', '.join(tables())}, such as quick/listops/msssm_s6"
    )


def row_recipe(name: str) -> dict[str, Any]:
    """The complete recipe of a row, such as `quick/listops/mamba`.

    Raises:
        InputError: there is no such table or row.
    """
    table, _, row = name.rpartition("/")
    return read_table(table_file(table)).recipe(row)


def _written(recipe: str) -> Path:
    """Writes a recipe that comes from a table to a file, which exists as long as this process."""
    folder = Path(mkdtemp(prefix="msssm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "recipe.yaml"
    path.write_text(recipe)
    return path
