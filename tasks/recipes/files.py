"""Files of recipes, looked at before the parser sees them, whose errors do not name them."""

from pathlib import Path
from typing import Any

import yaml

from msssm.errors import InputError, MissingFileError


class _OneOfEach(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML takes the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise InputError(f"line {key.start_mark.line + 1} has {key.value} a second time; remove one")
            seen.add(str(key.value))
        return node


def check_recipe(path: Path) -> None:
    """Refuses what is no recipe at all, before the parser sees it.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    if not path.is_file():
        raise MissingFileError(f"asked for the recipe {path}, got {'a folder' if path.is_dir() else 'no such file'}")
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8-sig"), _OneOfEach)
    except InputError as error:
        raise InputError(f"the recipe {path}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the recipe {path} is not text in UTF-8 ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"the recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict) or not recipe:
        what = "nothing" if recipe is None else f"a {type(recipe).__name__}"
        raise InputError(f"the recipe {path} holds {what}, expected options by name, as in configs/listops.yaml")
