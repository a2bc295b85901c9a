"""Check that a checkpoint has the weights of a network, before they are loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from msssm.errors import InputError


def check_weights(model: nn.Module, checkpoint: Mapping[str, Any], source: str | Path) -> None:
    """Refuses a checkpoint of another network.

    Args:
        model: built from the recipe.
        checkpoint: with its `state_dict`.
        source: Source of the checkpoint, for the message.

    Raises:
        InputError: naming a weight that one of them lacks, or whose shape differs.
    """
    theirs = {name: tuple(value.shape) for name, value in checkpoint.get("state_dict", {}).items()}
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items() if hasattr(value, "shape")}
    wrong = [name for name in [*ours, *theirs] if ours.get(name) != theirs.get(name)]
    if not wrong:
        return
    name, count = wrong[0], len(set(wrong))
    here, there = (f"{list(each[name])}" if name in each else "missing" for each in (ours, theirs))
    more = f", and {count - 1} more differ" if count > 1 else ""
    raise InputError(
        f"{source} does not fit the recipe: {name} is {here} in its network and {there} in the checkpoint{more}; name "
        "the recipe that it was trained with, such as the config.yaml of its run"
    )
