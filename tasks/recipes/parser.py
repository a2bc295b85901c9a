"""The parser of recipes, whose dumps are read again as what was given."""

import enum
import inspect
import re
import sys
import warnings
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

# Lightning's modules whose classes a recipe may name shortly.
_SHORT = ("callbacks", "loggers", "profilers", "strategies", "plugins", "accelerators")
_PLAIN = (str, int, float, list, dict, type(None))


class RecipeParser(LightningArgumentParser):
    """Lightning's parser, but a dump contains what was given, and only those defaults that YAML can express.

    Runs are built from dumps: of the interpolated recipe, and later of config.yaml. A default such as a device or an
    object would be dumped as a text about it; left out, it stays the default. So would a given text if its option also
    accepts a function.
    """

    def dump(self, namespace: Namespace, *args: Any, **kwargs: Any) -> str:
        """Dumps a recipe as YAML."""
        if "skip_none" in kwargs:  # Lightning's word for it, deprecated by jsonargparse
            kwargs["skip_unset"] = kwargs.pop("skip_none")
        written = namespace.clone()
        _make_plain(written)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"(?s).*Unable to serialize instance")
            dumped = super().dump(written, *args, **kwargs)
        return re.sub(r"Unable\s+to\s+serialize\s+instance\s+", "", dumped)


def _make_plain(node: Any) -> None:
    """Replaces members of enumerations by their values, and removes defaults that YAML cannot express."""
    if isinstance(node, list):
        for item in node:
            _make_plain(item)
    if not isinstance(node, Namespace):
        return
    options = vars(node).get("init_args")
    if isinstance(options, Namespace) and (cls := class_of(node.class_path)) is not None:
        parameters = inspect.signature(cls).parameters
        for name, value in list(vars(options).items()):
            default = parameters[name].default if name in parameters else None
            if isinstance(value, str) and isinstance(value, enum.Enum):
                options[name] = value.value
            elif not isinstance(value, (Namespace, *_PLAIN)) and value == default:
                del options[name]
    for value in vars(node).values():
        _make_plain(value)


def class_of(name: str) -> type | None:
    """Class of a path, or of the short name of one of Lightning's; None if nothing has imported its module."""
    module, _, attribute = name.rpartition(".")
    for home in [module] if module else [f"lightning.pytorch.{each}" for each in _SHORT]:
        found = getattr(sys.modules.get(home), attribute, None)
        if isinstance(found, type):
            return found
    return None
