"""Networks on disk without pickle: weights as safetensors, configuration as JSON."""

import json
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from msssm.errors import InputError, MissingFileError
from msssm.layer import SequenceLayer
from msssm.paths import local_path

SHIPPED = Path(__file__).parent / "models"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 2


def shipped_models() -> dict[str, Path]:
    """Folders of the models that come with msssm, by name."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob(f"*/{CONFIG}"))}


def pretrained_folder(model: str | Path) -> Path:
    """Returns the folder, or that of the shipped model of this name. A folder wins, and a warning says so.

    Raises:
        FileNotFoundError: neither a folder nor a name.
    """
    shipped, folder = shipped_models(), local_path(model)
    if folder.is_dir():
        if str(model) in shipped:
            warnings.warn(f"reads the folder {folder.absolute()}, not the shipped model {model}", stacklevel=3)
        return folder
    if str(model) not in shipped:
        raise MissingFileError(
            f"asked for the model {str(model)!r}, got neither a shipped one ({', '.join(shipped) or 'there is none'}) "
            "nor a folder; name one of them, or a folder that save_pretrained or msssm export wrote"
        )
    return shipped[str(model)]


def layer_config(layer: Callable[[int], SequenceLayer]) -> dict[str, Any] | None:
    """Describes a layer's class, or a `functools.partial` of it, as {"class_path": .., "init_args": ..}; else None."""
    if isinstance(layer, partial):
        # A recipe's layer is a partial of a function that is given the class.
        init_args, candidates = dict(layer.keywords), [layer.func, *layer.args]
    else:
        init_args, candidates = {}, [layer]
    made = next((each for each in candidates if isinstance(each, type) and issubclass(each, SequenceLayer)), None)
    if made is None:
        return None
    return {"class_path": f"{made.__module__}.{made.__qualname__}", "init_args": init_args}


def layer_factory(config: Mapping[str, Any]) -> Callable[[int], SequenceLayer]:
    """Inverse of `layer_config`, for layers of msssm alone: a downloaded file can import no other code.

    Raises:
        ValueError: the class is not a layer of msssm.
    """
    module, _, name = str(config["class_path"]).rpartition(".")
    made = getattr(import_module(module), name, None) if module.split(".")[0] == "msssm" else None
    if not (isinstance(made, type) and issubclass(made, SequenceLayer)):
        raise InputError(f"a pretrained network must have layers of msssm, got {config['class_path']!r}")
    return partial(made, **config["init_args"])


def write_pretrained(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], prefix: str = "") -> None:
    """Writes config.json and model.safetensors.

    Args:
        folder: created if it does not exist; files of these names are replaced.
        config: options of the backbone.
        weights: all tensors by name.
        prefix: beginning of the names of the backbone's tensors.

    Raises:
        ValueError: the backbone's layer or its options cannot be written as JSON.
    """
    if config["layer"] is None:
        raise InputError(
            "only a backbone whose layer was given as a class, or functools.partial of one, can be saved; "
            "got another function, such as a lambda"
        )
    try:
        text = json.dumps({"format": FORMAT, "prefix": prefix, "backbone": config}, indent=2)
    except TypeError as error:
        raise InputError(f"the options of a saved layer must be numbers, strings or booleans: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    # safetensors refuses tensors that share storage; the file that its own `save_file` writes is private to its owner.
    (folder / WEIGHTS).write_bytes(save({name: each.detach().clone().contiguous() for name, each in weights.items()}))
    (folder / CONFIG).write_text(text + "\n")


def read_pretrained(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Reads the backbone's config, all tensors by name, and the prefix of the backbone's.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or of another format.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise MissingFileError(f"{folder} has no {name}; name a folder that save_pretrained or msssm export wrote")
    try:
        content = json.loads((folder / CONFIG).read_text())
        # Copies, since safetensors maps the file into memory, and another one may take its place.
        weights = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise InputError(f"{folder} is damaged ({error}); export it again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not {"backbone", "prefix"} <= content.keys():
        raise InputError(f"{folder / CONFIG} is not of format {FORMAT}; export it again with this version of msssm")
    return content["backbone"], weights, content["prefix"]
