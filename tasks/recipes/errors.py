"""All faults of a recipe in one report: each option, its value, and what it may be.

The parser and the constructors stop at the first fault. After one, the recipe is checked again: each value against the
type in its class's signature; then it is built, each refused value replaced by its default, until nothing is refused.
"""

import collections.abc
import difflib
import inspect
import re
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser
from omegaconf import OmegaConf

from msssm.paths import local_path
from tasks.complaints import complaint
from tasks.recipes import renamed

Tree = dict[str, Any]

SHORT = ("callbacks", "loggers", "profilers", "strategies", "plugins", "accelerators")  # modules of short names
# Options of the trainer whose classes' errors name no option: the other options are then checked without them.
NAMELESS = ("callbacks", "logger", "plugins", "profiler", "strategy")
_POSITIONAL, _KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY


def recipes_first(words: list[str], find: Callable[[str], Path] = local_path) -> list[str]:
    """Moves the `--config` files of a command line before its options, which override them wherever they stand.

    Args:
        words: of the command line.
        find: locates the file of a `--config`.
    """
    rest = words[1:]
    files: list[str] = []
    options: list[str] = []
    while rest:
        word = rest.pop(0)
        if word in ("-c", "--config"):
            files += [word, *(str(find(path)) for path in rest[:1])]
            rest = rest[1:]
        elif word.startswith("--config="):
            files += ["--config", str(find(word.removeprefix("--config=")))]
        else:
            options.append(word)
    return [*words[:1], *files, *options]


def read_arguments(words: list[str]) -> Tree:
    """Merges files and options of a command line, later ones over earlier ones, into one nested recipe."""
    recipe: Tree = {}
    words = [part for word in words for part in (word.split("=", 1) if re.match(r"--[\w.]+\+?=", word) else [word])]
    for name, value in pairwise(words):
        if name in ("-c", "--config"):
            given = yaml.safe_load(Path(value).read_text()) or {}
            recipe = cast(Tree, OmegaConf.to_container(OmegaConf.merge(recipe, given)))
        elif name.startswith("--"):
            _set(recipe, name[2:].split("."), _scalar(value))
    resolved = OmegaConf.to_container(OmegaConf.create(recipe), resolve=True)
    assert isinstance(resolved, dict)
    return cast(Tree, resolved)


def recipe_errors(recipe: Tree, build: Callable[[Tree], Any], groups: dict[str, type], allowed: list[str]) -> list[str]:
    """Lists everything that is wrong with `recipe`.

    Args:
        recipe: of `read_arguments`; changed.
        build: parses and builds it, and raises for what it does not accept.
        groups: classes of the top-level groups that name none, such as the trainer's.
        allowed: packages whose classes a recipe may name.
    """
    errors: list[str] = []
    for name, group in recipe.items():
        if isinstance(group, dict) and name in groups:
            errors += _wrong_types(name, groups[name], group, allowed)
        else:
            errors += _wrong_nodes(name, group, allowed)
    replaced: dict[str, Any] = {}
    while True:
        try:
            build(recipe)
        except ArgumentError as error:
            plain = re.match(r"(?:Parser key \"|Option ')(\w+)", str(error))
            if plain is None or isinstance(recipe.get(plain.group(1)), dict | None):
                return errors or [str(error)]  # long, and repeats other faults if there are any
            errors.append(re.sub(r"\s+", " ", str(error)))
            del recipe[plain.group(1)]
        except Exception as error:
            message = complaint(error)
            if message is None and errors:
                return errors
            if message is None:
                raise
            places = _named_options(recipe, message)
            begins = next((p for p in places if message.startswith(f"{p.rpartition('.')[2]} ")), None)
            holders = {place.rpartition(".")[0] for place in places}
            near = [value for place, value in replaced.items() if not places or place.rpartition(".")[0] in holders]
            if not _says(message, near):
                errors.append(message if begins is None else begins + message[message.index(" ") :])
            if not set(places) - replaced.keys():
                if [name for name in NAMELESS if recipe.get("trainer", {}).pop(name, None)]:
                    continue
                return list(dict.fromkeys(errors))
            replaced |= {place: _replace(recipe, place, groups) for place in places}
        else:
            return errors


def _wrong_nodes(path: str, node: Any, allowed: list[str], later: int = 0) -> Iterator[str]:
    """Yields the faults of a value that may name one or more classes, and removes each wrong option.

    `later` is the number of the class's first arguments that its holder passes, and no recipe.
    """
    if isinstance(node, list):
        for item in node:
            yield from _wrong_nodes(path, item, allowed)
    if not isinstance(node, dict) or "class_path" not in node:
        return
    name = str(node["class_path"])
    if "." in name and not any(name.startswith(f"{package}.") for package in allowed):
        yield f"{path}: {name} may not be built by name; the classes of {', '.join(allowed)} may"
    elif (cls := class_of(name)) is not None:
        given = node.setdefault("init_args", {}) or {}
        yield from _wrong_types(path, cls, given, allowed)
        yield from _missing(path, cls, given | (node.get("dict_kwargs") or {}), later)
    elif name in renamed.CLASSES:
        yield f"{path}: {name} is now {renamed.CLASSES[name]}; rename it"
    elif "." in name:
        yield f"{path}: there is no class {name}"


def class_of(name: str) -> type | None:
    """Class of a path, or of the short name of one of Lightning's."""
    module, _, attribute = name.rpartition(".")
    for home in [module] if module else [f"lightning.pytorch.{each}" for each in SHORT]:
        try:
            found = getattr(import_module(home), attribute, None)
        except ImportError:
            continue
        if isinstance(found, type):
            return found
    return None


def _names_class(value: str, allowed: list[str]) -> bool:
    package, _, name = value.rpartition(".")
    within = not package or any(f"{package}.".startswith(f"{each}.") for each in allowed)
    return within and name[:1].isupper() and class_of(value) is not None


def _missing(path: str, cls: type, values: Tree, later: int) -> Iterator[str]:
    """Yields a message for each required option that is missing."""
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.kind in (_POSITIONAL, _KEYWORD)]
    for parameter in parameters[later:]:
        if parameter.default is parameter.empty and parameter.name not in values:
            yield f"{path}.{parameter.name} is missing; {cls.__name__} needs it"


def _later(hint: Any) -> int:
    """Number of arguments that the holder of an option passes to the class that it names."""
    if get_origin(hint) is collections.abc.Callable:
        given = get_args(hint)[0]
        return len(given) if isinstance(given, list) else 0
    return max(map(_later, get_args(hint)), default=0)


def _wrong_types(path: str, cls: type, values: Tree, allowed: list[str]) -> Iterator[str]:
    parameters = inspect.signature(cls).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:  # those of a package that is not installed
        hints = {}
    for name, value in list(values.items()):
        if name not in parameters and takes_any:
            continue
        if name not in parameters and renamed.OPTIONS.get(name) in parameters:
            yield f"{path}.{name} is now {path}.{renamed.OPTIONS[name]}; rename it"
            del values[name]
        elif name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1)
            yield f"{path}.{name}: {cls.__name__} has no such option" + (f"; did you mean {near[0]}?" if near else "")
            del values[name]
        elif isinstance(value, dict | list):
            yield from _wrong_nodes(f"{path}.{name}", value, allowed, _later(hints.get(name)))
        elif name in hints and not _fits(value, hints[name]):
            if isinstance(value, str) and _names_class(value, allowed):
                values[name] = {"class_path": value}
                yield from _wrong_nodes(f"{path}.{name}", values[name], allowed, _later(hints[name]))
                continue
            yield f"{path}.{name} must be {_spelled(hints[name])}, got {value!r}"
            _set_default(values, cls, name)


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, str) and "${" in value:
        return True
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        parser.parse_object({"value": value})
    except Exception:
        return False
    return True


def _spelled(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is Union or type(hint).__name__ == "UnionType":
        return " or ".join(map(_spelled, get_args(hint)))
    if hint is type(None):
        return "null"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _named_options(recipe: Tree, message: str) -> list[str]:
    """Paths of the options with which a message begins, or that it names as `name=value`."""
    names = {*re.findall(r"(\w+)=", message), *re.findall(r"^\w+", message)}
    return [path for path, _ in _leaves(recipe) if path.rpartition(".")[2] in names]


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            inner = path if name == "init_args" else f"{path}.{name}" if path else name
            yield from _leaves(value, inner)
    else:
        yield path, node


def _says(message: str, values: Iterable[Any]) -> bool:
    """Whether a message is on a value that stands in for a refused one, as where 500 is more than a given maximum."""
    words = re.findall(r"[\w.+-]*\w", message)
    return any(str(value) in words for value in values if value not in (None, False, True, 0, 1))


def _replace(recipe: Tree, place: str, groups: dict[str, type]) -> Any:
    """Replaces an option's value by its default, and returns that."""
    *path, name = place.split(".")
    node, cls = recipe, groups.get(path[0]) if path else None
    for part in path:
        node = node[part]
        if "class_path" in node:
            cls, node = class_of(node["class_path"]), node["init_args"]
    return _set_default(node, cls, name)


def _set_default(values: Tree, cls: type | None, name: str) -> Any:
    """Resets an option to its default; one without gets 1, which all of ours accept except those that name a class."""
    parameter = inspect.signature(cls).parameters.get(name) if cls is not None else None
    if parameter is None or parameter.default is parameter.empty:
        values[name] = 1
        return 1
    del values[name]
    return parameter.default


def _set(node: Tree, path: list[str], value: Any) -> None:
    for i, part in enumerate(path):
        if "class_path" in node and part not in ("class_path", "init_args"):
            node = node.setdefault("init_args", {})
        last = i == len(path) - 1
        if part.endswith("+"):
            items = node.setdefault(part[:-1], [])
            items.append({"class_path": value} if isinstance(value, str) else value)
        elif last and isinstance(node.get(part), dict) and "class_path" in node[part]:
            node[part] = {"class_path": value} if isinstance(value, str) else value
        elif last:
            node[part] = value
        else:
            inner = node.get(part)
            if isinstance(inner, list) and inner and isinstance(inner[-1], dict):
                inner = inner[-1]
            elif isinstance(inner, str):
                inner = node[part] = {"class_path": inner}
            if not isinstance(inner, dict):
                inner = node[part] = {}
            node = inner


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
