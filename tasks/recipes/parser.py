"""The parser of recipes: what it writes is read again as what was given."""

import enum
import inspect
import re
import warnings
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from tasks.recipes.errors import class_of

_PLAIN = (str, int, float, list, dict, type(None))


class RecipeParser(LightningArgumentParser):
    """Lightning's, but a dump holds what was given, and of the defaults those that YAML has a form for.

    Runs are built from dumps: of the interpolated recipe, and later of config.yaml. A default such as a device or an
    object would be written as a text about it; left out, it is the default again. A given text whose option also takes
    a function would be written as a text about it, too.
    """

    def dump(self, namespace: Namespace, *args: Any, **kwargs: Any) -> str:
        if "skip_none" in kwargs:  # Lightning's word for it, deprecated by jsonargparse
            kwargs["skip_unset"] = kwargs.pop("skip_none")
        written = namespace.clone()
        _make_plain(written)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"(?s).*Unable to serialize instance")
            dumped = super().dump(written, *args, **kwargs)
        return re.sub(r"Unable\s+to\s+serialize\s+instance\s+", "", dumped)


def _make_plain(node: Any) -> None:
    """Members of enumerations as their values; defaults without a form in YAML removed."""
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
