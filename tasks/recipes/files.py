"""Checks of recipe and experiment files before the parser reads them, whose errors do not name the file."""

from pathlib import Path
from typing import Any

import yaml

from msssm.errors import InputError, MissingFileError


class _OneOfEach(yaml.SafeLoader):
    """Loader that refuses a duplicate key of a mapping, of which YAML silently keeps the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise InputError(f"line {key.start_mark.line + 1} has {key.value} a second time; remove one")
            seen.add(str(key.value))
        return node


def read_yaml(path: Path, what: str = "recipe") -> dict[str, Any]:
    """Reads the options of a file by name, without resolving interpolations.

    Args:
        path: Path of the file.
        what: name of its kind in messages.

    Raises:
        InputError: naming the file and its fault.
    """
    if not path.is_file():
        raise MissingFileError(f"asked for the {what} {path}, got {'a folder' if path.is_dir() else 'no such file'}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _OneOfEach)
    except InputError as error:
        raise InputError(f"the {what} {path}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the {what} {path} is not text in UTF-8 ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"the {what} {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        got = "nothing" if content is None else f"a {type(content).__name__}"
        raise InputError(f"the {what} {path} holds {got}, expected options by name, as in configs/listops.yaml")
    return content
